// Compiled with -mavx512f -mavx512dq -mavx512vl -mavx512bw.
#if defined(__x86_64__)
#define CODETR_SET avx512
#define CODETR_VECTOR_BYTES 64
#include "kernels.inl"
#endif
