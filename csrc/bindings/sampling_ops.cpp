// The op that chooses tokens.
#include "bindings/bind_op.h"
#include "kernels/sample_tokens.h"

namespace pydstp {
namespace {

SampleTokensParams make_sample_tokens(Address logits, Address numbers, Address counts,
                                      Address marks, Address seq_idx, Address workspace,
                                      Address out, Address status, int64_t batch, int64_t max_batch,
                                      int64_t size, int dtype) {
  return {pointer(logits),
          pointer<double>(numbers),
          pointer<int64_t>(counts),
          pointer<uint8_t>(marks),
          pointer<int32_t>(seq_idx),
          pointer(workspace),
          pointer<int32_t>(out),
          pointer<int32_t>(status),
          batch,
          max_batch,
          size,
          DType(dtype)};
}

}  // namespace

void bind_sampling_ops(py::module_& m) {
  PYDSTP_BIND(m, sample_tokens, &make_sample_tokens);
  m.def("sample_row_bytes", &sample_row_bytes);
}

}  // namespace pydstp
