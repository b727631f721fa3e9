#define KERNEL_LANES 4
#define KERNEL_MODULE _kernels_baseline
#include "kernels.cpp"
