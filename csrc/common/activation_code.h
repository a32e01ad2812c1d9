// The activations that stand around a convolution; the numbers are those of the operators' schemas.
#pragma once

#include <cstdint>

namespace dlv3p {

enum class Activation : int32_t { kIdentity, kRelu, kRelu6, kSilu };

}  // namespace dlv3p
