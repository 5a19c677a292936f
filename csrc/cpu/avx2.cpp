// Compiled with -mavx2 -mfma.
#if defined(__x86_64__)
#define CODETR_SET avx2
#define CODETR_VECTOR_BYTES 32
#include "kernels.inl"
#endif
