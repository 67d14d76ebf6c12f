// Matrices in 8 bits: codes with one scale per row and group of columns, and what is done with
// them.
#pragma once

#include "common/dtype.h"
#include "common/math.h"

namespace pydstp {

class ThreadPool;

constexpr int64_t kGroupColumns = 128;    // that share the scale of a row
constexpr int64_t kTileRows = 16;         // that lie together
constexpr int64_t kStepColumns = 4;       // of one row that are neighbours in memory
constexpr float kSmallestGroup = 1e-30f;  // a group whose numbers are all smaller is zero

// Rows come in tiles and columns in groups, the last ones filled up. A number is
// (code - 128) * scale with codes in [1, 255]; columns past the end have code 128, rows past the
// end anything. Four columns of all rows of a tile are neighbours, in the order in which a product
// wants them: it reads the whole matrix in one run.
struct QuantisedMatrix {
  uint8_t* codes;  // [num_tiles, num_groups, kGroupColumns / kStepColumns, kTileRows, kStepColumns]
  BFloat16* scales;  // [num_tiles, num_groups, kTileRows]
  int64_t out_features, in_features;

  PYDSTP_HOST_DEVICE int64_t num_groups() const { return ceil_div(in_features, kGroupColumns); }
  PYDSTP_HOST_DEVICE int64_t num_tiles() const { return ceil_div(out_features, kTileRows); }
};

// Sets rows [first_row, first_row + num_rows). A scale is max|x| / 127 of its group rounded to
// bfloat16, a code x / scale rounded to nearest, ties to even.
struct QuantiseRowsParams {
  const void* x;  // [num_rows, in_features], contiguous, finite
  QuantisedMatrix matrix;
  int64_t first_row, num_rows;
  DType dtype;  // of x
};

// out = rows [first_row, first_row + num_rows), rounded once to dtype.
struct DequantiseRowsParams {
  QuantisedMatrix matrix;
  void* out;  // [num_rows, in_features], contiguous
  int64_t first_row, num_rows;
  DType dtype;  // of out
};

// out = x @ weight^T, for the few tokens of a step, where the codes are read once at the speed of
// memory, and for the many of a prompt, in blocks. x is quantised too, per token and group: scale
// max|x| / 127 in fp32, x * (127 / max|x|) rounded to nearest even. The products of a group are
// summed exactly, as integers; group by group, in order,
//   sum += float(products) * (scale of the weights * scale of x)
// with every operation rounded to fp32. So each output has the same bits in every tier, whatever
// num_tokens, the other tokens and the number of threads. A token with a number that is not finite
// gets NaN everywhere.
struct QuantisedLinearParams {
  const void* x;  // [num_tokens, in_features], contiguous
  QuantisedMatrix weight;
  void* out;           // [num_tokens, out_features], contiguous; must not overlap the inputs
  int8_t* x_codes;     // workspace: the groups of all tokens, in an order of the backend's own
  float* x_scales;     // likewise: a scale for each
  int32_t* x_offsets;  // likewise: -128 * the sum of its codes
  int64_t num_tokens;
  DType dtype;  // of x and out
};

void quantise_rows_cpu(const QuantiseRowsParams& p, ThreadPool& pool);
void dequantise_rows_cpu(const DequantiseRowsParams& p, ThreadPool& pool);
void quantised_linear_cpu(const QuantisedLinearParams& p, ThreadPool& pool);

void quantise_rows_simt(const QuantiseRowsParams& p);
void dequantise_rows_simt(const DequantiseRowsParams& p);
void quantised_linear_simt(const QuantisedLinearParams& p);

int quantise_rows_cuda(const QuantiseRowsParams& p, void* stream);
int dequantise_rows_cuda(const DequantiseRowsParams& p, void* stream);
int quantised_linear_cuda(const QuantisedLinearParams& p, void* stream);

}  // namespace pydstp
