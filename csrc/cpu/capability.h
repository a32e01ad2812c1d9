// Which instruction set the CPU kernels run with.
#pragma once

#include "gather.h"
#include "norm.h"
#include "upsample.h"

namespace dlv3p {

// The widest that this CPU has and ATEN_CPU_CAPABILITY, which torch obeys too, allows.
const GatherCode& gather_code();
const NormCode& norm_code();
const UpsampleArgmaxCode& upsample_argmax_code();
const UpsampleLossCode& upsample_loss_code();

}  // namespace dlv3p
