// The four passes of a batch norm over a map: statistics, application, and the same two backward.
//
// A map is worked on in blocks of rows, each row being the channels of one pixel (channels_last) or
// all rows together being one channel (contiguous: rows of a single channel). Everything here is
// plain data: the loops are compiled once per instruction set (norm_kernel.cpp).
#pragma once

#include <cstdint>

#include "../common/activation_code.h"
#include "gather.h"

namespace dlv3p {

// `rows` rows of `channels` adjacent elements, `pitch` elements from one row to the next. The
// vectors have one value per channel, in the accumulation type.
//
// z = (input - mean) * scale + shift + residual, output = activation(z); backward g is the gradient
// at z, and grad_input = scale * (g - mean_grad - (input - mean) * mean_product).
struct NormBlock {
  int64_t rows;
  int64_t channels;
  int64_t pitch;
  const void* input;
  const void* grad_output;
  const void* residual;  // nullptr: none
  void* output;          // backward the gradient of the input
  void* grad_residual;   // nullptr: not wanted
  const void* mean;
  const void* scale;
  const void* shift;
  const void* mean_grad;     // nullptr: the statistics are fixed
  const void* mean_product;  // the same
  Activation activation;
  // Per channel: a value near the mean, the difference of the mean to it, and the sum of squared
  // differences to the mean; backward the sums of g and of g * (input - mean), and no pivots.
  double* pivots;
  double* first_sums;
  double* second_sums;
};

// Rows narrower than the map's have to have this many channels at least: a vector of any set.
constexpr int64_t kNormLeastPanel = 16;
// Rows that are summed up in one block have this many channels at most.
constexpr int64_t kNormMostPanel = 512;

struct NormCode {
  // By Element.
  void (*stats[kElementKinds])(const NormBlock&);
  void (*apply[kElementKinds])(const NormBlock&);
  void (*backward_reduce[kElementKinds])(const NormBlock&);
  void (*backward_apply[kElementKinds])(const NormBlock&);
};

}  // namespace dlv3p
