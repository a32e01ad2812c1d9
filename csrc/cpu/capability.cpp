#include "capability.h"

#include <cstdlib>
#include <string>

namespace dlv3p {

// What each set of *_kernel.cpp defines, and which of them belong together.
#define DLV3P_DECLARE_CODE(isa)                               \
  extern const GatherCode gather_code_##isa;                  \
  extern const NormCode norm_code_##isa;                      \
  extern const UpsampleArgmaxCode upsample_argmax_code_##isa; \
  extern const UpsampleLossCode upsample_loss_code_##isa;
#define DLV3P_CODE(isa) \
  {gather_code_##isa, norm_code_##isa, upsample_argmax_code_##isa, upsample_loss_code_##isa}

DLV3P_DECLARE_CODE(default)
#if defined(__x86_64__)
DLV3P_DECLARE_CODE(avx2)
DLV3P_DECLARE_CODE(avx512)
DLV3P_DECLARE_CODE(avx512_bf16)
#endif

namespace {

// Everything that is compiled for one instruction set.
struct Code {
  const GatherCode& gather;
  const NormCode& norm;
  const UpsampleArgmaxCode& upsample_argmax;
  const UpsampleLossCode& upsample_loss;
};

Code choose() {
#if defined(__x86_64__)
  const char* variable = std::getenv("ATEN_CPU_CAPABILITY");
  const std::string limit = variable ? variable : "";
  if (limit == "default") return DLV3P_CODE(default);
  const bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") &&
                    __builtin_cpu_supports("f16c");
  const bool avx512 = avx2 && __builtin_cpu_supports("avx512f") &&
                      __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512vl") &&
                      __builtin_cpu_supports("avx512dq");
  if (avx512 && limit != "avx2") {
    const bool bf16 = __builtin_cpu_supports("avx512bf16") && limit != "avx512";
    if (bf16) return DLV3P_CODE(avx512_bf16);
    return DLV3P_CODE(avx512);
  }
  if (avx2) return DLV3P_CODE(avx2);
#endif
  return DLV3P_CODE(default);
}

const Code& code() {
  static const Code chosen = choose();
  return chosen;
}

}  // namespace

const GatherCode& gather_code() { return code().gather; }
const NormCode& norm_code() { return code().norm; }
const UpsampleArgmaxCode& upsample_argmax_code() { return code().upsample_argmax; }
const UpsampleLossCode& upsample_loss_code() { return code().upsample_loss; }

}  // namespace dlv3p
