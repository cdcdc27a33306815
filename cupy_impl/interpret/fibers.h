// The scheduler's face to the kernels. One thread of a block is one fiber; see fibers.cpp.
#pragma once
#include <stddef.h>
#include <stdint.h>

namespace convgap_interpret {

struct Index {
    unsigned x, y, z;
};
extern Index threadIdx, blockIdx, blockDim, gridDim;

// Threads of the block that have voted true at the next __syncthreads_or.
extern unsigned votes;

// Waits until every thread of the block waits on this line.
void barrier(int line);

// Waits until every living lane in mask waits on this line with this mask; gives the value of lane source,
// or all ones (a NaN) where the GPU leaves it undefined: that lane has exited, or is not in the mask.
uint64_t exchange(unsigned mask, uint64_t value, unsigned source, int line);

// Ends the launch with an error.
[[noreturn]] void misaligned(const char* name, size_t bytes, int line);
[[noreturn]] void outside(const char* name, size_t bytes, int line);

// Whether the launch was given these bytes; true where it did not say what it gives.
bool inside(const void* address, size_t bytes);

}  // namespace convgap_interpret
