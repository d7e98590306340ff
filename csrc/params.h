// One plain struct per op: what a kernel is told. No torch, no Python, no dtype template.
//
// Images are [B, C, S] with S the flattened spatial extent; logical element i of a sample is c * S + s whatever the
// memory layout. Pointers are device pointers in cuda/ and host pointers in cpu/. "NULL" marks what may be absent.
#pragma once
#include <cstdint>

namespace fastdiff {

enum Dtype : int32_t { kF32 = 0, kF16 = 1, kBF16 = 2, kF64 = 3, kU8 = 4 };

// kChannelsFirst: element (b, c, s) lies at (b * C + c) * S + s.   kChannelsLast: at (b * S + s) * C + c.
enum Layout : int32_t { kChannelsFirst = 0, kChannelsLast = 1 };

// Counter stream of each use of the RNG (DESIGN 4); mirrored by fastdiff/ops/rng.py.
enum Stream : uint32_t { kInitial = 0, kStep = 1, kKnown = 2, kTraining = 3, kTimesteps = 4, kFlips = 5, kLabels = 6 };

enum StatusCode : int32_t {
  kOk = 0,
  kIndexOutOfRange = 1,   // where: position in t or row; value: what stood there
  kMissingInput = 2,      // where: MissingInput below; value: the row that asks for it
  kCudaError = 3,         // value: cudaError_t
  kUnsupported = 4,       // dtype or layout combination the kernel does not have
};

enum MissingInput : int64_t { kNoNoise = 0, kNoExtra = 1, kNoHistory = 2, kNoModelOutput = 3, kNoKnownNoise = 4, kNoVariance = 5 };

struct Status {
  int32_t code = kOk;
  int64_t where = 0;
  int64_t value = 0;
};

struct NormalParams {
  void* out;                  // [B, C, S]
  const int64_t* rng;         // [2] = (seed bits, draw)
  const int64_t* sample_ids;  // [B], in [0, 2^32)
  int64_t B, C, S;
  int32_t dtype;              // of out: f32 | f16 | bf16 | f64
  int32_t layout;             // of out
  uint32_t stream;
  int32_t num_threads;        // CPU only
};

struct QSampleParams {
  const void* x_start;        // [B, C, H * W]
  const int64_t* t;           // [B]
  const void* alpha;          // [T] f32; f64 where x_t is f64
  const void* sigma;          // [T] like alpha
  const void* noise;          // [B, C, H * W], or NULL: drawn from rng, sample_ids, stream
  const int64_t* rng;         // [2], NULL where noise is given
  const int64_t* sample_ids;  // [B], NULL where noise is given
  const uint8_t* flip;        // [B] bool, NULL: none; mirrors x_start over W, never the noise
  void* x_t;                  // [B, C, H * W]
  void* noise_out;            // [B, C, H * W] f32 (f64 where x_t is f64) in x_t's layout, or NULL
  int64_t B, C, H, W, T;
  int32_t x_start_dtype;      // any
  int32_t x_start_layout;
  int32_t noise_dtype;        // f32 | f16 | bf16 | f64
  int32_t noise_layout;
  int32_t x_t_dtype;          // f32 | f16 | bf16 | f64
  int32_t x_t_layout;
  uint32_t stream;
  int32_t num_threads;
};

// Columns of a plan's row table; mirrored by fastdiff/ops/rows.py.
enum RowColumn : int32_t {
  kW, kPX, kPM, kBound, kG0, kL0, kL1, kCX, kC0, kCM, kC1, kC2, kC3, kGX, kGV, kStd,
  kQX, kQ0, kQM, kWrite, kK0, kKN, kCIn, kReserved,
  kRowColumns,                // 24
};

struct ReverseStepParams {
  // State tensors share state_dtype and state_layout.
  const void* x;              // [B, C, S]
  void* out;                  // [B, C, S]; x itself or disjoint from it
  const void* noise;          // [B, C, S], or NULL: drawn (stream kStep) where the row's std is not 0
  const void* extra;          // [B, C, S] or NULL
  const void* known;          // [B, C, S], NULL iff mask is NULL
  const void* known_noise;    // [B, C, S], or NULL: drawn (stream kKnown) where the row's k_n is not 0
  const void* mask;           // [mask_B, mask_C, S] contiguous in state_layout, or NULL; 1 generates, 0 keeps
  void* history;              // [3, B, C, S] each slot in state_layout, or NULL
  // The network's tensors have a dtype and layout of their own.
  const void* model_output;   // [B (2B guided), C (2C learned), S] model_dtype, model_layout; NULL where no row needs it
  void* model_input;          // [B * input_copies, C, S] input_dtype, input_layout, or NULL
  const float* gain;          // [B] or NULL: 1
  const float* bound;         // [B] or NULL: the row's bound
  const float* shrink;        // [B] or NULL: 1
  const void* rows;           // [R, kRowColumns] f32; f64 where state_dtype is f64
  const int64_t* row;         // [1] (row_stride 0) or [B] (row_stride 1)
  const int64_t* rng;         // [2] or NULL
  const int64_t* sample_ids;  // [B], NULL iff rng is NULL
  int64_t B, C, S, R;
  int32_t state_dtype;        // f32 | f16 | bf16 | f64
  int32_t state_layout;
  int32_t model_dtype;
  int32_t model_layout;
  int32_t input_dtype;
  int32_t input_layout;
  int32_t row_stride;
  int32_t guided;             // model_output holds [uncond, cond] halves along the batch
  int32_t learned;            // model_output holds [mean, raw variance] halves along the channels
  int32_t input_copies;       // 1, or 2 for the next guided call
  int32_t mask_B;             // 1 or B
  int32_t mask_C;             // 1 or C
  int32_t num_threads;
};

// Element i of a sample, in logical order, is kept where its word of the counter RNG is not below the threshold.
struct Dropout {
  const int64_t* rng;         // [2], or NULL: nothing is dropped
  const int64_t* sample_ids;  // [B], NULL where rng is
  double factor;              // of what is kept
  uint32_t threshold;
  uint32_t stream;            // 256 + layer
};

struct GroupNormSiluParams {
  const void* x;              // [B, C, S]
  const void* weight;         // [C] or NULL: 1
  const void* bias;           // [C] or NULL: 0
  const void* add;            // [B, C], unit channel stride, row stride add_stride; or NULL
  const void* scale;          // [B, C] likewise, or NULL
  const void* shift;          // [B, C] likewise, or NULL
  void* y;                    // [B, C, S], dtype and layout of x
  void* mean;                 // [B, G] f32 (f64 where x is f64), of x + add; NULL on the CPU alone: not wanted
  void* rstd;                 // [B, G] likewise, NULL where mean is
  void* workspace;            // CUDA only: as many f32 as cuda::group_norm_silu_workspace says
  const void* residual;       // [B, C, S], dtype and layout of x, or NULL
  Dropout drop;               // of the activation, before the residual
  int64_t B, C, S, G;
  int64_t add_stride, scale_stride, shift_stride;   // elements
  double eps;
  int32_t dtype;              // f32 | f16 | bf16 | f64
  int32_t layout;
  int32_t weight_dtype;       // of weight and bias
  int32_t add_dtype, scale_dtype, shift_dtype;
  int32_t silu;               // 0: no activation
  int32_t num_threads;
};

struct GroupNormSiluBackwardParams {
  const void* grad_y;         // [B, C, S], dtype and layout of x
  const void* x;              // as in the forward pass, and so on
  const void* mean;
  const void* rstd;
  const void* weight;
  const void* bias;
  const void* add;
  const void* scale;
  const void* shift;
  void* grad_x;               // [B, C, S], dtype and layout of x, or NULL
  void* grad_weight;          // [C] weight_dtype, or NULL
  void* grad_bias;            // [C] weight_dtype, or NULL
  void* grad_add;             // [B, C] contiguous, add_dtype, or NULL
  void* grad_scale;           // [B, C] contiguous, scale_dtype, or NULL
  void* grad_shift;           // [B, C] contiguous, shift_dtype, or NULL
  void* workspace;            // CUDA only: see cuda::group_norm_silu_backward_workspace
  Dropout drop;
  int64_t B, C, S, G;
  int64_t add_stride, scale_stride, shift_stride;
  int32_t dtype;
  int32_t layout;
  int32_t weight_dtype;
  int32_t add_dtype, scale_dtype, shift_dtype;
  int32_t silu;
  int32_t num_threads;
};

// Of both passes; what only one uses is marked.
struct DiffusionLossParams {
  const void* model_output;   // [B, C or 2C, H * W]; the first C channels are read
  const void* x_start;        // [B, C, H * W]
  const int64_t* t;           // [B]
  const void* target_x0;      // [T] f32; f64 where model_output is f64
  const void* target_eps;     // [T] likewise
  const void* noise;          // [B, C, H * W], or NULL: drawn from rng, sample_ids, stream
  const int64_t* rng;         // [2], NULL where noise is given
  const int64_t* sample_ids;  // [B], NULL where noise is given
  const uint8_t* flip;        // [B] bool, NULL: none; mirrors x_start over W, never the noise
  const void* weight;         // [T] like target_x0, NULL: 1
  const void* sample_weight;  // [B] likewise, NULL: 1
  void* loss;                 // forward: [B] like target_x0
  void* workspace;            // forward: sums of chunks, NULL where each sample is one; CPU: [B, ceil(C * H * W / 16384)]
                              // f64, CUDA: as many f32 as cuda::loss_workspace says
  const void* grad_loss;      // backward: [B] like target_x0
  void* grad;                 // backward: like model_output, in its layout; 0 in what is not read
  int64_t B, C, H, W, T;
  int32_t model_dtype;        // f32 | f16 | bf16 | f64
  int32_t model_layout;
  int32_t x_start_dtype;      // any
  int32_t x_start_layout;
  int32_t noise_dtype;        // f32 | f16 | bf16 | f64
  int32_t noise_layout;
  int32_t learned;            // model_output has 2C channels
  uint32_t stream;
  int32_t num_threads;
};

// Columns of the table of vlb_terms; mirrored by fastdiff/ops/vlb_columns.py.
enum VlbColumn : int32_t { kVlbPX, kVlbPM, kVlbR0, kVlbRX, kVlbRaw, kVlbL0, kVlbL1, kVlbLQ, kVlbColumns };

struct VlbTermsParams {
  const void* model_output;   // [B, C or 2C, H * W]
  const void* x_start;        // [B, C, H * W]
  const void* x_t;            // [B, C, H * W]
  const int64_t* t;           // [B]
  const void* table;          // [T, kVlbColumns] f32; f64 where model_output is f64
  const uint8_t* flip;        // as above, and so on
  const void* weight;
  const void* sample_weight;
  void* terms;                // forward: [B] like table
  void* workspace;
  const void* grad_terms;     // backward: [B] like table
  void* grad;
  int64_t B, C, H, W, T;
  double bound;               // of x0's estimate
  int32_t model_dtype;
  int32_t model_layout;
  int32_t x_start_dtype;
  int32_t x_start_layout;
  int32_t x_t_dtype;          // f32 | f16 | bf16 | f64
  int32_t x_t_layout;
  int32_t learned;
  int32_t exact;              // 0: the tanh approximation of the normal's cdf, floored
  int32_t detach_mean;        // the gradient of the mean channels is 0
  int32_t num_threads;
};

// Channels last throughout.
struct Conv3x3Params {
  const void* x;              // [B, H, W, C]
  const float* filters;       // [(tile + 2)^2, padded O / columns, C, columns], of conv3x3_pack at the same SIMD level
  const float* bias;          // [O] or NULL
  const float* add;           // [B, O] or NULL
  const void* residual;       // [B, H, W, O] or NULL
  const float* norm_weight;   // [C] or NULL
  const float* norm_bias;     // [C] or NULL
  const float* scale;         // [B, C] or NULL
  const float* shift;         // [B, C] or NULL
  void* y;                    // [B, H, W, O]
  int64_t B, H, W, C, O;
  int64_t groups;             // of the GroupNorm before it, 0: none
  int64_t add_stride, scale_stride, shift_stride;   // between samples, in elements
  double eps;
  int32_t dtype;              // of x, residual and y: f32 | f16 | bf16
  int32_t tile;               // outputs along a side of a tile: 2 | 4
  bool silu;                  // after the GroupNorm
  int32_t num_threads;
};

struct ConvolutionParams {
  const void* x;              // [B, H, W, C]
  const float* filters;       // as convolution_pack made them at the same SIMD level
  const float* bias;          // [O] or NULL
  const void* residual;       // [B, rows, columns, O] or NULL
  void* y;                    // [B, rows, columns, O]
  int64_t B, H, W, C, O;
  int64_t rows, columns;      // (H or W + 2 padding - kernel) / stride + 1
  int64_t kernel, stride, padding;
  int32_t dtype;              // of x, residual and y: f32 | f16 | bf16
  bool pairs;                 // of the filters
  int32_t num_threads;
};

struct ConvolutionPackParams {
  const float* weight;        // [O, C, taps], at o * o_stride + c * c_stride + tap * tap_stride
  void* packed;               // float32 [padded O / columns, taps C, columns], columns = two vectors of the SIMD level
  int64_t O, C, taps;
  int64_t o_stride, c_stride, tap_stride;   // in elements
  bool pairs;                 // instead bf16 [padded O / columns, padded taps C / 2, columns, 2], at avx512bf16 alone
  int32_t num_threads;
};

struct Conv3x3PackParams {
  const float* weight;        // [O, C, 3, 3], at o * o_stride + c * c_stride + (3 y + x) * tap_stride
  float* packed;              // [(tile + 2)^2, padded O / columns, C, columns], columns = two vectors of the SIMD level
  int64_t O, C;
  int64_t o_stride, c_stride, tap_stride;   // in elements
  int32_t tile;               // 2 | 4
  int32_t num_threads;
};

struct Conv3x3BackwardParams {
  const void* grad_y;         // [B, H, W, O]
  const void* x;              // [B, H, W, C]
  float* grad_weight;         // [O, 3, 3, C]
  int64_t B, H, W, C, O;
  int32_t dtype;              // of grad_y and x: f32 | f16 | bf16
  int32_t num_threads;
};

struct RmsNormSiluParams {
  const void* x;              // [B, C, S]
  const void* weight;         // [C] or NULL: 1
  const void* scale;          // [B, C], unit channel stride, row stride scale_stride; or NULL
  const void* shift;          // [B, C] likewise, or NULL
  void* y;                    // [B, C, S], dtype and layout of x
  int64_t B, C, S;
  int64_t scale_stride, shift_stride;   // elements
  double eps;
  double most;                // of 1 / sqrt(mean of squares + eps); may be infinite
  int32_t dtype;              // f32 | f16 | bf16 | f64
  int32_t layout;
  int32_t weight_dtype;
  int32_t scale_dtype, shift_dtype;
  int32_t silu;               // 0: no activation
  int32_t num_threads;
};

struct RmsNormSiluBackwardParams {
  const void* grad_y;         // [B, C, S], dtype and layout of x
  const void* x;              // as in the forward pass, and so on
  const void* weight;
  const void* scale;
  const void* shift;
  void* grad_x;               // [B, C, S], dtype and layout of x, or NULL
  void* grad_weight;          // [C] weight_dtype, or NULL
  void* grad_scale;           // [B, C] contiguous, scale_dtype, or NULL
  void* grad_shift;           // [B, C] contiguous, shift_dtype, or NULL
  void* workspace;            // [B, kRmsParts, C, 2] f32 (f64 where x is f64); CUDA: see
                              // cuda::rms_norm_silu_backward_workspace
  int64_t B, C, S;
  int64_t scale_stride, shift_stride;
  double eps, most;
  int32_t dtype;
  int32_t layout;
  int32_t weight_dtype;
  int32_t scale_dtype, shift_dtype;
  int32_t silu;
  int32_t num_threads;
};

// Stretches of a sample's positions whose sums the C++ kernel keeps apart.
constexpr int kRmsParts = 8;

}  // namespace fastdiff
