// A first kernel in CUDA C++: one block for each plane, a tree in shared memory.
//
//     python3 bench.py judge examples/candidates/tail_cuda.cu

/* judge
operator = "multiply_gap"
entry = "tail"
arguments = ["y", "out", "multiplier", "H * W"]
grid = ["N * C"]
block = 256
end judge */

extern "C" __global__ void tail(const float* y, float* out, float multiplier, int plane) {
    __shared__ float sums[256];
    const float* mine = y + (long long)blockIdx.x * plane;
    float sum = 0.0f;
    for (int position = threadIdx.x; position < plane; position += 256) sum += mine[position];
    sums[threadIdx.x] = sum;
    __syncthreads();
    // Half of the threads add what the other half found, until one is left.
    for (int half = 128; half > 0; half /= 2) {
        if (threadIdx.x < half) sums[threadIdx.x] += sums[threadIdx.x + half];
        __syncthreads();
    }
    if (threadIdx.x == 0) out[blockIdx.x] = sums[0] * multiplier / plane;
}
