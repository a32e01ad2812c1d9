#include "capability.h"

#include <cstdlib>
#include <string>

namespace dlv3p {

extern const GatherCode gather_code_default;
extern const NormCode norm_code_default;

#if defined(__x86_64__)
extern const GatherCode gather_code_avx2;
extern const NormCode norm_code_avx2;
extern const GatherCode gather_code_avx512;
extern const NormCode norm_code_avx512;
extern const GatherCode gather_code_avx512_bf16;
extern const NormCode norm_code_avx512_bf16;
#endif

namespace {

// Everything that is compiled for one instruction set.
struct Code {
  const GatherCode& gather;
  const NormCode& norm;
};

Code choose() {
#if defined(__x86_64__)
  const char* variable = std::getenv("ATEN_CPU_CAPABILITY");
  const std::string limit = variable ? variable : "";
  if (limit == "default") return {gather_code_default, norm_code_default};
  const bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") &&
                    __builtin_cpu_supports("f16c");
  const bool avx512 = avx2 && __builtin_cpu_supports("avx512f") &&
                      __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512vl") &&
                      __builtin_cpu_supports("avx512dq");
  if (avx512 && limit != "avx2") {
    const bool bf16 = __builtin_cpu_supports("avx512bf16") && limit != "avx512";
    if (bf16) return {gather_code_avx512_bf16, norm_code_avx512_bf16};
    return {gather_code_avx512, norm_code_avx512};
  }
  if (avx2) return {gather_code_avx2, norm_code_avx2};
#endif
  return {gather_code_default, norm_code_default};
}

const Code& code() {
  static const Code chosen = choose();
  return chosen;
}

}  // namespace

const GatherCode& gather_code() { return code().gather; }
const NormCode& norm_code() { return code().norm; }

}  // namespace dlv3p
