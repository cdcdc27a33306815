/* What native.c uses of DLPack, of the CUDA driver, and of Python: the last two are filled in by `configure`. */

#define Py_LIMITED_API 0x030B0000
#define PY_SSIZE_T_CLEAN
#include <Python.h>
#include <dlfcn.h>
#include <stdint.h>
#include <string.h>

/* ---- DLPack 1.x, as far as it is used ---- */

typedef struct { int32_t device_type, device_id; } DLDevice;
typedef struct { uint8_t code, bits; uint16_t lanes; } DLDataType;
enum { COMPLEX = 5 }; /* a code */
typedef struct {
  void* data;
  DLDevice device;
  int32_t ndim;
  DLDataType dtype;
  int64_t* shape;
  int64_t* strides;
  uint64_t byte_offset;
} DLTensor;
typedef struct ExchangeHeader {
  struct { uint32_t major, minor; } version;
  struct ExchangeHeader* prev_api;
} ExchangeHeader;
typedef struct {
  ExchangeHeader header;
  void* managed_tensor_allocator;
  void* managed_tensor_from_py_object_no_sync;
  void* managed_tensor_to_py_object_no_sync;
  int (*dltensor_from_py_object_no_sync)(void* object, DLTensor* out);
  int (*current_work_stream)(int32_t device_type, int32_t device_id, void** stream);
} Exchange;

/* ---- the CUDA driver ---- */

typedef int (*LaunchKernel)(void* function, unsigned gx, unsigned gy, unsigned gz, unsigned bx, unsigned by,
                            unsigned bz, unsigned shared, void* stream, void** parameters, void** extra);
static LaunchKernel launch_kernel;
static int (*current_device)(int* device);             /* of the context that is current in this thread */
static int (*is_capturing)(void* stream, int* status); /* 0: no CUDA graph is captured on the stream */

/* ---- what `configure` was given ---- */

static const Exchange* exchange;
static int device_type;              /* DLPack's number for the devices that are served: 2, CUDA */
static int enabled;                  /* 0 after a fork, in the child: CUDA does not work there */
static PyObject *tensor_type, *parameter_type;
static PyObject *has_torch_function; /* torch.overrides.has_torch_function_variadic */
static PyObject *grad_enabled;       /* torch.is_grad_enabled */
static PyObject *keys_of, *included, *excluded, *profiling, *forward_ad; /* of runtime/private.py, as `ordinary` uses them */
static PyObject *empty_strided;      /* (size, stride, dtype) -> fresh tensor on the current device */
static PyObject *plan_tail, *plan_chain, *plan_backward; /* (*arguments of a call) -> plan or None */
static PyObject *make_room;          /* (stream, counters, bytes) -> (counters, workspace) to keep for a stream */
static PyObject *name_raw_repr, *name_requires_grad, *name_level, *name_cdata;
static uint64_t usual_keys[4], added_keys, inplace_key, cast_keys, autograd_keys;

/* ---- what is read from torch's libraries, where that is as Python says; else Python is asked ---- */

static int reads_torch;
static void* keys_library;                           /* has a variable of each thread: the keys that it adds and takes away */
static uint64_t stored_as[2];                        /* what these two are stored as differences to */
static _Bool (*is_negated)(void* const* tensor);     /* a tensor is the address of its implementation, and nothing else */
static _Bool (*has_names)(const void* implementation); /* NULL in a torch whose dimensions have no names */
static unsigned long long hits, misses;

enum { TENSORS = 4 }; /* of a call, at most */
