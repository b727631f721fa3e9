#define KERNEL_LANES 8
#define KERNEL_MODULE _kernels_avx2
#include "kernels.cpp"
