// Launcher of the forward depthwise convolution by rows.
#include <cstdint>
#include <numeric>
#include <type_traits>

#include "depthwise_launch.h"
#include "depthwise_rows_fwd.cuh"
#include "depthwise_rows_plan.h"
#include "reduce.h"

namespace dlv3p {
namespace {

// Which of the kernel's forms serves a call. The plain one has more channels a thread, as it needs
// registers for nothing else.
enum class Form { kPlain, kBefore, kAffine, kStatistics };

Form form_of(const DepthwiseForward& p) {
  if (p.mean) return Form::kStatistics;
  if (!p.behind.is_identity()) return Form::kAffine;
  return p.before.is_identity() ? Form::kPlain : Form::kBefore;
}

constexpr Behind behind_of(Form form) {
  if (form == Form::kStatistics) return Behind::kStatistics;
  return form == Form::kAffine ? Behind::kAffine : Behind::kNothing;
}

template <class T, int K, Form kForm>
constexpr int lanes() {
  if (K > 3) return 2;
  return sizeof(T) == 2 && kForm == Form::kPlain ? 8 : 4;
}

int effective_stride(const ConvAxis& rows) {
  return static_cast<int>(rows.stride / std::gcd(rows.stride, rows.dilation));
}

template <class T, int K, int S, Form kForm>
struct Launcher {
  static constexpr int V = lanes<T, K, kForm>();
  static constexpr int kMoments =
      kChunkBytes / static_cast<int>(sizeof(T)) * static_cast<int>(sizeof(Moments));
  static constexpr RowsNeeds kNeeds{K,
                                    RowSchedule<K, S>::kPending,
                                    S,
                                    V * static_cast<int>(sizeof(T)),
                                    0,
                                    0,
                                    kForm == Form::kStatistics ? kMoments : 0};

  static RowsPlan plan(const DepthwiseForward& p) {
    return RowsPlan(p.rows, p.columns, p.batch, p.channels, sizeof(T), kNeeds);
  }

  static void run(const Stream& stream, const DepthwiseForward& p, const Tensor& input) {
    const RowsPlan plan = Launcher::plan(p);
    RowsForward q{plan.geometry(p.input_map, p.output_map),
                  p.input,
                  p.weight,
                  p.bias,
                  p.output,
                  strides_of(p.input_map),
                  strides_of(p.output_map),
                  p.before,
                  p.behind,
                  nullptr};
    constexpr auto kKernel =
        depthwise_rows_fwd_kernel<T, K, S, V, kForm != Form::kPlain, behind_of(kForm)>;
    if constexpr (kForm != Form::kStatistics) {
      stream.launch(kKernel, plan.grid(), plan.block(), plan.shared_bytes(), q);
    } else {
      const Tensor room = float_workspace(input, plan.parts() * 3 * p.channels);
      q.moment_parts = static_cast<float*>(room.mutable_data_ptr());
      stream.launch(kKernel, plan.grid(), plan.block(), plan.shared_bytes(), q);
      launch_reduce_moments(stream, {q.moment_parts, plan.parts(), p.channels, p.mean, p.var});
    }
  }
};

// Calls `body` with the launcher of a call; returns false where there is none.
template <class T, class Body>
bool with_launcher(const DepthwiseForward& p, Body&& body) {
  if (p.rows.kernel != p.columns.kernel) return false;
  const int stride = effective_stride(p.rows);
  const Form form = form_of(p);
  const auto by_form = [&](auto s) {
    constexpr int S = decltype(s)::value;
    switch (form) {
      case Form::kPlain:
        return body(Launcher<T, 3, S, Form::kPlain>());
      case Form::kBefore:
        return body(Launcher<T, 3, S, Form::kBefore>());
      case Form::kAffine:
        return body(Launcher<T, 3, S, Form::kAffine>());
      default:
        return body(Launcher<T, 3, S, Form::kStatistics>());
    }
  };
  if (p.rows.kernel == 3 && stride == 1) return by_form(std::integral_constant<int, 1>());
  if (p.rows.kernel == 3 && stride == 2) return by_form(std::integral_constant<int, 2>());
  if (form != Form::kPlain) return false;
  if (p.rows.kernel == 5 && stride == 1) return body(Launcher<T, 5, 1, Form::kPlain>());
  if (p.rows.kernel == 5 && stride == 2) return body(Launcher<T, 5, 2, Form::kPlain>());
  if (p.rows.kernel == 7 && stride == 1) return body(Launcher<T, 7, 1, Form::kPlain>());
  return false;
}

template <class T>
bool take(const DepthwiseForward& p) {
  const bool maps_fit = p.channels * sizeof(T) % kChunkBytes == 0 &&
                        reinterpret_cast<std::uintptr_t>(p.weight) % kChunkBytes == 0 &&
                        rows_fit(p.input_map, p.input, p.rows.in, p.columns.in, sizeof(T)) &&
                        rows_fit(p.output_map, p.output, p.rows.out, p.columns.out, sizeof(T));
  return maps_fit && with_launcher<T>(p, [&](auto launcher) { return launcher.plan(p).fits(); });
}

}  // namespace

bool rows_take(const DepthwiseForward& p, const Tensor& input) {
  bool takes = false;
  with_element_type(input, "depthwise_conv2d", [&](auto* element) {
    takes = take<std::remove_pointer_t<decltype(element)>>(p);
  });
  return takes;
}

void launch_rows(const Stream& stream, const DepthwiseForward& p, const Tensor& input) {
  with_element_type(input, "depthwise_conv2d", [&](auto* element) {
    with_launcher<std::remove_pointer_t<decltype(element)>>(p, [&](auto launcher) {
      launcher.run(stream, p, input);
      return true;
    });
  });
}

}  // namespace dlv3p
