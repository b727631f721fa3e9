#define KERNEL_LANES 16
#define KERNEL_MODULE _kernels_avx512
#include "kernels.cpp"
