// For every processor: 16-byte vectors, which all 64-bit x86 and ARM processors have.
#define CODETR_SET generic
#define CODETR_VECTOR_BYTES 16
#include "kernels.inl"
