// Loss and classes of logits that are resized to the size of an image, without the resized logits.
//
// A task has one image and a band of its rows. It works on one tile of columns after the other, and
// in it from row to row: the one or two rows of logits that a resized row lies between are held
// resized along the columns, so that all that is left is a sum of two terms per class and pixel.
//
// Everything here is plain data: the loops are compiled once per instruction set
// (upsample_loss_kernel.cpp, upsample_argmax_kernel.cpp).
#pragma once

#include <cstdint>

#include "gather.h"
#include "upsample_axis.h"

namespace dlv3p {

struct Upsample {
  Map logits;
  int64_t extent;  // elements of memory from the first to the last of the logits
  int64_t batch;
  int64_t classes;
  UpsampleAxis rows;
  UpsampleAxis columns;
  int64_t bands;        // tasks per image
  int64_t tile;         // resized columns per tile, a multiple of every vector's length
  int64_t most_source;  // columns of logits that a tile reads, and gradients it writes, at most
};

// (N, H, W), strides in elements.
struct Plane {
  const void* data;
  int64_t stride_n;
  int64_t stride_h;
  int64_t stride_w;
};

enum class Label : int { kInt64, kInt32, kUInt8 };

struct UpsampleLoss {
  Upsample map;
  Plane target;
  Label label;
  int64_t ignore_index;
  const void* weight;  // (classes) in the accumulation type, nullptr: 1
  double weight_sum;
  double label_smoothing;
  void* loss;       // (N, H, W), contiguous, in the accumulation type
  void* logsumexp;  // the same; read by the gradient
  Plane grad_loss;
  Map gradient;
};

struct UpsampleArgmax {
  Upsample map;
  void* index;  // (N, H, W), contiguous; uint8 or int64
  bool as_uint8;
  void* probability;  // the same in the accumulation type; nullptr: not wanted
};

struct UpsampleLossCode {
  // By Element: bytes of scratch memory that a task needs; the tasks, `bands` per image. Forward
  // tells whether every label is a class or ignored.
  int64_t (*scratch_bytes[kElementKinds])(const UpsampleLoss&);
  bool (*forward[kElementKinds])(const UpsampleLoss&, int64_t task, void* scratch);
  void (*backward[kElementKinds])(const UpsampleLoss&, int64_t task, void* scratch);
};

struct UpsampleArgmaxCode {
  int64_t (*scratch_bytes[kElementKinds])(const UpsampleArgmax&);
  void (*run[kElementKinds])(const UpsampleArgmax&, int64_t task, void* scratch);
};

}  // namespace dlv3p
