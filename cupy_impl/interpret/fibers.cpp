// Runs the blocks of a grid one after another, each with one fiber per thread.
//
// Warps take turns. Within a warp the lanes run in order, each until it waits or exits. Then completed
// shuffles are answered and the warp runs on; when it can not, the next warp has its turn. When no warp can
// run, either the whole block waits at one barrier, which opens it, or the block has ended, or it hangs.
//
// A fiber is made with ucontext, and then switched to with _setjmp and _longjmp, which unlike swapcontext
// make no system call. Fibers never end: they go on to the next block, and to the next launch.
#include "fibers.h"

#include <setjmp.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <ucontext.h>

#include <algorithm>
#include <numeric>
#include <random>
#include <string>

namespace convgap_interpret {

Index threadIdx, blockIdx, blockDim, gridDim;
unsigned votes;

namespace {

constexpr unsigned THREADS = 1024, WARP = 32, NOBODY = ~0u;
constexpr size_t STACK = 128 << 10, GUARD = 64 << 10;  // a guard is at least one page on any Linux

enum State : unsigned char { READY, BARRIER, SHUFFLE, EXITED };

State state[THREADS];
int line_of[THREADS];      // where a waiting thread waits
unsigned mask_of[THREADS];  // the three arguments of a waiting shuffle
uint64_t value_of[THREADS], answer[THREADS];
unsigned source_of[THREADS];

jmp_buf jump[THREADS], scheduler;
bool born[THREADS];
char* stacks;

void (*run)(void* const*);
void* const* arguments;
std::string error;

const uintptr_t* extent;  // first address of a tensor of the launch, and the first behind it
size_t extents;

unsigned warps[THREADS / WARP], lanes[WARP];  // the order in which they run
unsigned warp, lane;                          // positions in these two

// Wakes the lanes of this warp whose shuffle is complete. True if there were any.
bool answer_shuffles(unsigned first) {
    unsigned alive = 0, woken = 0, count = std::min(WARP, blockDim.x - first);
    for (unsigned i = 0; i < count; i++) alive |= unsigned(state[first + i] != EXITED) << i;
    for (unsigned i = 0; i < count; i++) {
        unsigned me = first + i, group = mask_of[me] & alive;
        if (state[me] != SHUFFLE || woken >> i & 1) continue;
        bool complete = true;
        for (unsigned j = 0; j < count; j++)
            if (group >> j & 1)
                complete = complete && state[first + j] == SHUFFLE && mask_of[first + j] == mask_of[me] &&
                           line_of[first + j] == line_of[me];
        if (!complete) continue;
        for (unsigned j = 0; j < count; j++)
            if (group >> j & 1) {
                unsigned source = source_of[first + j];
                answer[first + j] = group >> source & 1 ? value_of[first + source] : ~uint64_t(0);
            }
        woken |= group;
    }
    for (unsigned i = 0; i < count; i++)
        if (woken >> i & 1) state[first + i] = READY;
    return woken;
}

bool open_barrier() {
    for (unsigned i = 0; i < blockDim.x; i++)
        if (state[i] != BARRIER || line_of[i] != line_of[0]) return false;
    memset(state, READY, blockDim.x);
    return true;
}

// The thread that runs next; NOBODY if the block has ended or hangs.
unsigned next() {
    for (;;) {
        unsigned first = warps[warp] * WARP;
        while (lane < WARP) {
            unsigned i = first + lanes[lane++];
            if (i < blockDim.x && state[i] == READY) return i;
        }
        lane = 0;
        if (answer_shuffles(first)) continue;
        if (++warp < (blockDim.x + WARP - 1) / WARP) continue;
        warp = 0;
        if (!open_barrier()) return NOBODY;
    }
}

void fiber();

[[noreturn]] void go_to(unsigned i) {
    if (i == NOBODY) _longjmp(scheduler, 1);
    threadIdx.x = i;
    if (born[i]) _longjmp(jump[i], 1);
    born[i] = true;
    ucontext_t context;
    getcontext(&context);
    // Stacks that all began at the same offset would fight for the same sets of the cache.
    size_t colour = i % 64 * 320;
    context.uc_stack.ss_sp = stacks + i * (STACK + GUARD) + GUARD;
    context.uc_stack.ss_size = STACK - colour;
    context.uc_link = nullptr;
    makecontext(&context, fiber, 0);
    setcontext(&context);
    __builtin_unreachable();
}

void wait(unsigned i, State why) {
    state[i] = why;
    unsigned other = next();
    if (other != i && !_setjmp(jump[i])) go_to(other);
}

void fiber() {
    for (;;) {
        run(arguments);
        wait(threadIdx.x, EXITED);
    }
}

// "threads 0-31 wait at __syncthreads on line 7, threads 32-63 have exited"
std::string who_waits_where() {
    std::string text;
    for (unsigned i = 0, j; i < blockDim.x; i = j) {
        for (j = i + 1; j < blockDim.x && state[j] == state[i]; j++)
            if (state[i] != EXITED && line_of[j] != line_of[i]) break;
        text += (i ? ", thread" : "thread") + (j - i > 1 ? "s " + std::to_string(i) + "-" : std::string(" ")) +
                std::to_string(j - 1);
        text += state[i] == EXITED ? " exited" : state[i] == BARRIER ? " at __syncthreads" : " in a warp shuffle";
        if (state[i] != EXITED) text += " on line " + std::to_string(line_of[i]);
    }
    return text;
}

void run_block() {
    memset(state, READY, blockDim.x);
    warp = lane = votes = 0;
    if (!_setjmp(scheduler)) go_to(next());
    bool ended = std::all_of(state, state + blockDim.x, [](State s) { return s == EXITED; });
    if (!ended && error.empty()) error = "the block hangs: " + who_waits_where();
    if (!error.empty()) std::fill(born, born + THREADS, false);  // some are stuck in the middle of a kernel
}

// Nothing that needs a destructor may live where _longjmp leaves.
[[noreturn]] void fail(const char* what, size_t bytes, const char* where, int line) {
    error = "thread " + std::to_string(threadIdx.x) + " on line " + std::to_string(line) + ": " + what +
            (bytes ? " of " + std::to_string(bytes) + " bytes " + where : "");
    _longjmp(scheduler, 1);
}

}  // namespace

void barrier(int line) {
    unsigned i = threadIdx.x;
    line_of[i] = line;
    wait(i, BARRIER);
}

uint64_t exchange(unsigned mask, uint64_t value, unsigned source, int line) {
    unsigned i = threadIdx.x;
    if (!(mask >> i % WARP & 1)) fail("a warp shuffle whose mask leaves out the caller", 0, "", line);
    line_of[i] = line, mask_of[i] = mask, value_of[i] = value, source_of[i] = source;
    wait(i, SHUFFLE);
    return answer[i];
}

void misaligned(const char* name, size_t bytes, int line) {
    fail(name, bytes, "at a misaligned address", line);
}

void outside(const char* name, size_t bytes, int line) {
    fail(name, bytes, "that are not all inside a tensor of the launch", line);
}

bool inside(const void* address, size_t bytes) {
    auto at = reinterpret_cast<uintptr_t>(address);
    for (size_t i = 0; i < 2 * extents; i += 2)
        if (at >= extent[i] && at + bytes <= extent[i + 1]) return true;
    return !extents;
}

// Runs one grid. order: 0 forward, 1 reverse, 2 shuffled. Gives null, or what went wrong, until the next call.
extern "C" const char* convgap_interpret_launch(void (*kernel)(void* const*), void* const* kernel_arguments,
                                                unsigned grid_x, unsigned grid_y, unsigned grid_z, unsigned block,
                                                char* shared, size_t shared_bytes, int order,
                                                const uintptr_t* given, size_t given_count) {
    if (!stacks) {
        void* memory = mmap(nullptr, THREADS * (STACK + GUARD), PROT_READ | PROT_WRITE,
                            MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
        if (memory == MAP_FAILED) return "no memory for the stacks of the threads";
        stacks = static_cast<char*>(memory);
        for (unsigned i = 0; i < THREADS; i++) mprotect(stacks + i * (STACK + GUARD), GUARD, PROT_NONE);
    }
    run = kernel, arguments = kernel_arguments;
    extent = given, extents = given_count;
    gridDim = {grid_x, grid_y, grid_z}, blockDim = {block, 1, 1};
    unsigned warp_count = (block + WARP - 1) / WARP;
    uint64_t blocks = uint64_t(grid_x) * grid_y * grid_z;
    std::mt19937 random(20240607);  // any seed does; a fixed one makes a failure repeat
    std::iota(warps, warps + warp_count, 0), std::iota(lanes, lanes + WARP, 0);
    if (order == 1) std::reverse(warps, warps + warp_count), std::reverse(lanes, lanes + WARP);
    std::string().swap(error);
    // Shuffled blocks: i -> i * step + start is a permutation of the grid, if step has no factor in common with it.
    uint64_t step = order == 1 ? blocks - 1 : 1, at = order == 1 ? blocks - 1 : 0;
    if (order == 2) {
        at = random() % blocks;
        do step = 1 + random() % blocks;
        while (std::gcd(step, blocks) != 1);
    }
    for (uint64_t i = 0; i < blocks; i++, at = (at + step) % blocks) {
        blockIdx = {unsigned(at % grid_x), unsigned(at / grid_x % grid_y), unsigned(at / grid_x / grid_y)};
        if (order == 2) {
            std::shuffle(warps, warps + warp_count, random);
            std::shuffle(lanes, lanes + WARP, random);
        }
        if (shared_bytes) memset(shared, 0xff, shared_bytes);
        run_block();
        if (!error.empty()) {
            char where[64];
            snprintf(where, sizeof where, "block (%u, %u, %u): ", blockIdx.x, blockIdx.y, blockIdx.z);
            return (error.insert(0, where)).c_str();
        }
    }
    return nullptr;
}

}  // namespace convgap_interpret
