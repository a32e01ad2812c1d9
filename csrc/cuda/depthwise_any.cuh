// Depthwise convolution of any kernel size, stride, layout and alignment: one thread makes V
// neighbouring channels of one pixel. What the faster kernels do not take comes here.
#pragma once

#include "depthwise_stages.cuh"
#include "reduce.cuh"

namespace dlv3p {

// A pixel of a batch of maps, by its number or as a distance.
struct Pixel {
  int64_t image;
  int64_t row;
  int64_t column;

  __host__ __device__ static Pixel of(int64_t index, int64_t height, int64_t width) {
    const int64_t rows = index / width;
    const int64_t images = rows / height;
    return {images, rows - images * height, index - rows * width};
  }

  // Divisions would cost more than the convolution.
  __device__ void advance(const Pixel& by, int64_t height, int64_t width) {
    column += by.column;
    row += by.row;
    image += by.image;
    if (column >= width) {
      column -= width;
      ++row;
    }
    if (row >= height) {
      row -= height;
      ++image;
    }
  }

  __device__ int64_t offset(const DepthwiseMap& map) const {
    return image * map.stride_n + row * map.stride_h + column * map.stride_w;
  }
};

// How the threads of a block stand: `lanes` next to each other along the channels, `rows` of them
// along the pixels. Where channels are not adjacent in memory, there is one lane.
struct AnyBlock {
  int lanes;
  int rows;
  int64_t slice_pixels;  // of each of the blocks that share the pixels
  Pixel step;            // `rows` pixels on
};

constexpr int kAnyThreads = 256;
constexpr int kAnyLanes = 32;

// The pixels that one row of a block's threads takes, one after the other.
class PixelWalk {
 public:
  __device__ PixelWalk(const AnyBlock& block, int row, int64_t pixels, int64_t height,
                       int64_t width)
      : at_(Pixel::of(blockIdx.y * block.slice_pixels + row, height, width)),
        by_(block.step),
        height_(height),
        width_(width) {
    const int64_t begin = blockIdx.y * block.slice_pixels;
    const int64_t end = begin + block.slice_pixels < pixels ? begin + block.slice_pixels : pixels;
    const int64_t mine = end - begin - row;
    left_ = mine > 0 ? (mine + block.rows - 1) / block.rows : 0;
  }

  __device__ bool more() const { return left_ > 0; }
  __device__ const Pixel& at() const { return at_; }
  __device__ void next() {
    --left_;
    at_.advance(by_, height_, width_);
  }

 private:
  Pixel at_;
  Pixel by_;
  int64_t height_;
  int64_t width_;
  int64_t left_;
};

template <class T>
__device__ inline T* at(void* map, int64_t offset) {
  return static_cast<T*>(map) + offset;
}
template <class T>
__device__ inline const T* at(const void* map, int64_t offset) {
  return static_cast<const T*>(map) + offset;
}

// The input as the convolution sees it: a map through `before`.
struct MapSource {
  const void* data;
  DepthwiseMap map;
  ChannelAffine before;

  // V channels of a thread.
  template <class T, int V>
  class Reader {
   public:
    __device__ Reader(const MapSource& source, int64_t channel)
        : from_(at<T>(source.data, channel * source.map.stride_c)),
          map_(source.map),
          before_(source.before, channel) {}

    __device__ void read(const Pixel& pixel, float (&x)[V]) const {
      unpack(load_pack<V>(from_ + pixel.offset(map_)), x);
      before_.apply(x);
    }

   private:
    const T* from_;
    DepthwiseMap map_;
    AffineStage<V> before_;
  };
};

template <class T, int V, class Source>
__global__ void __launch_bounds__(kAnyThreads)
    depthwise_any_fwd_kernel(DepthwiseForward p, Source source, AnyBlock block) {
  const int lane = static_cast<int>(threadIdx.x) % block.lanes;
  const int64_t channel = (static_cast<int64_t>(blockIdx.x) * block.lanes + lane) * V;
  if (channel >= p.channels) return;
  const T* weight = at<T>(p.weight, channel * p.rows.kernel * p.columns.kernel);
  const int64_t taps = p.rows.kernel * p.columns.kernel;
  const typename Source::template Reader<T, V> reader(source, channel);
  const AffineStage<V> behind(p.behind, channel);
  const int64_t pixels = p.batch * p.rows.out * p.columns.out;
  for (PixelWalk walk(block, static_cast<int>(threadIdx.x) / block.lanes, pixels, p.rows.out,
                      p.columns.out);
       walk.more(); walk.next()) {
    const Pixel& pixel = walk.at();
    float sum[V];
#pragma unroll
    for (int v = 0; v < V; ++v) sum[v] = p.bias ? to_float(at<T>(p.bias, channel)[v]) : 0.0f;
    for (int64_t kh = 0; kh < p.rows.kernel; ++kh) {
      const int64_t h = p.rows.source(pixel.row, kh);
      if (h < 0 || h >= p.rows.in) continue;
      for (int64_t kw = 0; kw < p.columns.kernel; ++kw) {
        const int64_t w = p.columns.source(pixel.column, kw);
        if (w < 0 || w >= p.columns.in) continue;
        float x[V];
        reader.read({pixel.image, h, w}, x);
#pragma unroll
        for (int v = 0; v < V; ++v) {
          sum[v] += to_float(weight[v * taps + kh * p.columns.kernel + kw]) * x[v];
        }
      }
    }
    behind.apply(sum);
    store_pack(at<T>(p.output, pixel.offset(p.output_map) + channel * p.output_map.stride_c),
               pack_of<T>(sum));
  }
}

// The output index that input index `i` takes part in through tap `k`; -1 for none.
__device__ inline int64_t target(const ConvAxis& axis, int64_t i, int64_t k) {
  const int64_t distance = i + axis.before - k * axis.dilation;
  if (axis.stride == 1) return distance >= 0 && distance < axis.out ? distance : -1;
  if (distance < 0 || distance >= axis.out * axis.stride) return -1;
  const auto steps = static_cast<unsigned>(distance);  // 64-bit divisions are calls
  const auto stride = static_cast<unsigned>(axis.stride);
  return steps % stride == 0 ? static_cast<int64_t>(steps / stride) : -1;
}

// Where the sums of a block go: row `slice` of (slices, width, channels).
struct AnyParts {
  float* parts;
  int width;
};

// Sums over the rows of a block, for its V * lanes channels, into `to` (channels). The block
// continues after a barrier.
template <int V>
__device__ inline void store_block_sums(float* scratch, const float (&values)[V],
                                        const AnyBlock& block, int lane, int row, int64_t channels,
                                        float* to) {
  if (block.lanes == 1) {
    const int64_t first = static_cast<int64_t>(blockIdx.x) * V;
    block_sums<kAnyThreads>(scratch, values, [&](int v, float sum) { to[first + v] = sum; });
    __syncthreads();
    return;
  }
  lay_down<V>(scratch, values, lane, row, block.lanes);
  __syncthreads();
  const int columns = V * block.lanes;
  const int64_t first = static_cast<int64_t>(blockIdx.x) * columns;
  for (int i = static_cast<int>(threadIdx.x); i < columns; i += kAnyThreads) {
    const int64_t channel = first + i % block.lanes * V + i / block.lanes;
    if (channel < channels) to[channel] = column_sum(scratch, i, columns, block.rows);
  }
  __syncthreads();
}

// The input gradient, and per block the sums that make the gradients of `before`.
template <class T, int V>
__global__ void __launch_bounds__(kAnyThreads)
    depthwise_any_bwd_input_kernel(DepthwiseBackward p, AnyBlock block, AnyParts parts) {
  __shared__ float scratch[kAnyThreads * V];
  const int lane = static_cast<int>(threadIdx.x) % block.lanes;
  const int row = static_cast<int>(threadIdx.x) / block.lanes;
  const int64_t channel = (static_cast<int64_t>(blockIdx.x) * block.lanes + lane) * V;
  const bool works = channel < p.channels;
  const int64_t taps = p.rows.kernel * p.columns.kernel;
  const AffineStage<V> before(p.before, works ? channel : 0);
  const T* weight = at<T>(p.weight, (works ? channel : 0) * taps);
  float sums[2 * V] = {};  // for the gradients of scale and shift
  const int64_t pixels = works ? p.batch * p.rows.in * p.columns.in : 0;
  for (PixelWalk walk(block, row, pixels, p.rows.in, p.columns.in); walk.more(); walk.next()) {
    const Pixel& pixel = walk.at();
    const T* image =
        at<T>(p.grad, pixel.image * p.grad_map.stride_n + channel * p.grad_map.stride_c);
    float sum[V] = {};
    for (int64_t kh = 0; kh < p.rows.kernel; ++kh) {
      const int64_t h = target(p.rows, pixel.row, kh);
      if (h < 0) continue;
      for (int64_t kw = 0; kw < p.columns.kernel; ++kw) {
        const int64_t w = target(p.columns, pixel.column, kw);
        if (w < 0) continue;
        float g[V];
        unpack(load_pack<V>(image + h * p.grad_map.stride_h + w * p.grad_map.stride_w), g);
#pragma unroll
        for (int v = 0; v < V; ++v) {
          sum[v] += to_float(weight[v * taps + kh * p.columns.kernel + kw]) * g[v];
        }
      }
    }
    if (!p.before.is_identity()) {
      const int64_t offset = pixel.offset(p.input_map) + channel * p.input_map.stride_c;
      before.back(load_pack<V>(at<T>(p.input, offset)), sum, sums);
    }
    store_pack(
        at<T>(p.grad_input, pixel.offset(p.grad_input_map) + channel * p.grad_input_map.stride_c),
        pack_of<T>(sum));
  }
  if (!p.grad_scale) return;
  const int64_t taps_before = parts.width - 2;
#pragma unroll
  for (int s = 0; s < 2; ++s) {
    float values[V];
#pragma unroll
    for (int v = 0; v < V; ++v) values[v] = sums[s * V + v];
    store_block_sums<V>(scratch, values, block, lane, row, p.channels,
                        parts.parts + (blockIdx.y * parts.width + taps_before + s) * p.channels);
  }
}

// Per block and tap, the sums that make the weight gradient.
template <class T, int V, class Source>
__global__ void __launch_bounds__(kAnyThreads)
    depthwise_any_bwd_weight_kernel(DepthwiseBackward p, Source source, AnyBlock block,
                                    AnyParts parts) {
  __shared__ float scratch[kAnyThreads * V];
  const int lane = static_cast<int>(threadIdx.x) % block.lanes;
  const int row = static_cast<int>(threadIdx.x) / block.lanes;
  const int64_t channel = (static_cast<int64_t>(blockIdx.x) * block.lanes + lane) * V;
  const bool works = channel < p.channels;
  const typename Source::template Reader<T, V> reader(source, works ? channel : 0);
  const int64_t pixels = works ? p.batch * p.rows.out * p.columns.out : 0;
  const int64_t taps = p.rows.kernel * p.columns.kernel;
  for (int64_t tap = 0; tap < taps; ++tap) {
    float sum[V] = {};
    for (PixelWalk walk(block, row, pixels, p.rows.out, p.columns.out); walk.more(); walk.next()) {
      const Pixel& pixel = walk.at();
      const int64_t h = p.rows.source(pixel.row, tap / p.columns.kernel);
      const int64_t w = p.columns.source(pixel.column, tap % p.columns.kernel);
      if (h < 0 || h >= p.rows.in || w < 0 || w >= p.columns.in) continue;
      float g[V], x[V];
      unpack(load_pack<V>(at<T>(p.grad, pixel.offset(p.grad_map) + channel * p.grad_map.stride_c)),
             g);
      reader.read({pixel.image, h, w}, x);
#pragma unroll
      for (int v = 0; v < V; ++v) sum[v] = fmaf(g[v], x[v], sum[v]);
    }
    store_block_sums<V>(scratch, sum, block, lane, row, p.channels,
                        parts.parts + (blockIdx.y * parts.width + tap) * p.channels);
  }
}

}  // namespace dlv3p
