// expert_linear and quantised_expert_linear: rows of one expert that lie together are one product.
#include "kernels/expert_linear.h"

#include <cstring>

#include "cpu/tier.h"

namespace pydstp {
namespace {

int64_t size_of(DType dtype) { return dtype == DType::kBFloat16 ? 2 : 4; }

// Calls multiply(expert, first row, rows) for every run of rows of one expert.
template <typename F>
void for_each_run(const int32_t* expert_idx, int64_t num_rows, const F& multiply) {
  for (int64_t first = 0, end = 0; first < num_rows; first = end) {
    while (end < num_rows && expert_idx[end] == expert_idx[first]) ++end;
    multiply(expert_idx[first], first, end - first);
  }
}

// Some rows of a product, with no weights yet.
template <typename Params>
Params some_rows(const Params& p, int64_t first, int64_t num_rows, int64_t in_features,
                 int64_t out_features) {
  Params rows = p;
  rows.x = static_cast<const char*>(p.x) + first * in_features * size_of(p.dtype);
  rows.out = static_cast<char*>(p.out) + first * out_features * size_of(p.dtype);
  rows.num_tokens = num_rows;
  return rows;
}

}  // namespace

void multiply_by_experts(const ExpertLinearParams& p, ThreadPool& pool) {
  const int64_t in_features = p.rows.in_features, out_features = p.rows.out_features;
  const int64_t bytes = in_features * out_features * size_of(p.rows.dtype);
  for_each_run(p.expert_idx, p.rows.num_tokens, [&](int64_t expert, int64_t first, int64_t n) {
    LinearParams rows = some_rows(p.rows, first, n, in_features, out_features);
    rows.weight = static_cast<const char*>(p.rows.weight) + expert * bytes;
    if (is_index(expert, p.num_experts)) return linear_cpu(rows, pool);
    memset(rows.out, 0, n * out_features * size_of(p.rows.dtype));
  });
}

void multiply_by_quantised_experts(const QuantisedExpertLinearParams& p, ThreadPool& pool) {
  const QuantisedMatrix& m = p.rows.weight;
  const int64_t groups = m.num_tiles() * m.num_groups();
  for_each_run(p.expert_idx, p.rows.num_tokens, [&](int64_t expert, int64_t first, int64_t n) {
    QuantisedLinearParams rows = some_rows(p.rows, first, n, m.in_features, m.out_features);
    rows.weight.codes = m.codes + expert * groups * kTileRows * kGroupColumns;
    rows.weight.scales = m.scales + expert * groups * kTileRows;
    if (is_index(expert, p.num_experts)) return quantised_linear_cpu(rows, pool);
    memset(rows.out, 0, n * m.out_features * size_of(p.rows.dtype));
  });
}

}  // namespace pydstp
