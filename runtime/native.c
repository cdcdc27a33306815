/* The ordinary call of the operator on a CUDA device in C: from torch's tensors to the launches of its kernels.

   A call is looked up by its sizes, strides, dtypes, alignments, device and settings. What is found was worked out in
   Python at the first call of its kind (convgap/fast.py): the shape of the output, the bytes of workspace, and one or two
   launches. What is left is to read addresses, to allocate the output and to launch. Whatever is not ordinary is answered
   with None, and the caller goes the way through Python.

   Tensors are read through DLPack's table of C functions, which torch offers as torch.Tensor.__dlpack_c_exchange_api__:
   no header of torch is needed and no release of torch is special. Of Python only the limited API of 3.11 is used, of
   CUDA three functions of the driver. Everything runs under the GIL, and between the first address that is read and the
   last launch nothing is called that could let another thread run: two calls never share workspace at the same time. */

#define Py_LIMITED_API 0x030B0000
#define PY_SSIZE_T_CLEAN
#include <Python.h>
#include <dlfcn.h>
#include <stdint.h>
#include <string.h>

/* ---- DLPack 1.x, as far as it is used ---- */

typedef struct { int32_t device_type, device_id; } DLDevice;
typedef struct { uint8_t code, bits; uint16_t lanes; } DLDataType;
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
static PyObject *plan_tail, *plan_chain; /* (*arguments of a call) -> plan or None */
static PyObject *make_room;          /* (stream, counters, bytes) -> (counters, workspace) to keep for a stream */
static PyObject *name_raw_repr, *name_requires_grad, *name_level;
static uint64_t usual_keys[4], added_keys, inplace_key, cast_keys, autograd_keys;
static unsigned long long hits, misses;

/* ---- plans ---- */

enum { MOST_ARGUMENTS = 64, MOST_LAUNCHES = 4, MOST_OUTPUTS = 2, KEPT_PLANS = 4096, BUCKETS = 8192, KEPT_BYTES = 1 << 20 };
enum { TENSORS = 4 }; /* of a call, at most */
enum { POINTER, WORKSPACE, COUNTERS, OUTPUT, INTEGER, MEAN, SCALE }; /* what an argument of a kernel is */

typedef struct {
  void* function;
  unsigned gx, gy, threads, shared;
  int count;
  unsigned char code[MOST_ARGUMENTS];
  int64_t value[MOST_ARGUMENTS];
} Launch;

typedef struct {
  int references; /* of the table, and of calls under way: another thread may clear the table meanwhile */
  int outputs;
  PyObject* output[MOST_OUTPUTS][3]; /* size, stride, dtype */
  double area; /* positions that the mean is taken over */
  int64_t workspace, counters; /* bytes, and int32 zeros */
  int launches;
  Launch launch[MOST_LAUNCHES];
} Plan;

enum { OPTIONS = 9, WORDS = 4 + TENSORS * 11 + OPTIONS };
typedef struct { uint64_t word[WORDS]; } Key;

typedef struct Entry {
  struct Entry* next;
  uint64_t hash;
  Key key;
  Plan* plan; /* NULL: the way through Python serves this call */
} Entry;

static Entry* buckets[BUCKETS];
static int kept;

static void let_go(Plan* plan) {
  if (plan && --plan->references == 0) {
    for (int i = 0; i < plan->outputs; i++)
      for (int j = 0; j < 3; j++) Py_DecRef(plan->output[i][j]);
    PyMem_Free(plan);
  }
}

static void clear_table(void) {
  for (int i = 0; i < BUCKETS; i++) {
    Entry* entry = buckets[i];
    buckets[i] = NULL;
    while (entry) {
      Entry* next = entry->next;
      let_go(entry->plan);
      PyMem_Free(entry);
      entry = next;
    }
  }
  kept = 0;
}

static uint64_t hash_of(const Key* key) {
  uint64_t hash = 0x9E3779B97F4A7C15ull;
  for (int i = 0; i < WORDS; i++) {
    hash = (hash ^ key->word[i]) * 0xD6E8FEB86659FD93ull;
    hash ^= hash >> 32;
  }
  return hash;
}

static Entry* find(const Key* key, uint64_t hash) {
  for (Entry* entry = buckets[hash % BUCKETS]; entry; entry = entry->next)
    if (entry->hash == hash && memcmp(&entry->key, key, sizeof(Key)) == 0) return entry;
  return NULL;
}

static int remember(const Key* key, uint64_t hash, Plan* plan) {
  if (kept >= KEPT_PLANS) clear_table(); /* a model calls with few sizes; who calls with many loses little */
  Entry* entry = PyMem_Malloc(sizeof(Entry));
  if (!entry) { PyErr_NoMemory(); return -1; }
  entry->hash = hash;
  entry->key = *key;
  entry->plan = plan;
  if (plan) plan->references++;
  entry->next = buckets[hash % BUCKETS];
  buckets[hash % BUCKETS] = entry;
  kept++;
  return 0;
}

/* A plan from what convgap/fast.py gives:
   (((size, stride, dtype), ...), area, workspace, counters, ((function, gx, gy, threads, shared, ((code, value), ...)), ...)) */
static Plan* plan_from(PyObject* given) {
  PyObject *outputs, *launches;
  double area;
  long long workspace, counters;
  if (!PyArg_ParseTuple(given, "OdLLO", &outputs, &area, &workspace, &counters, &launches)) return NULL;
  Py_ssize_t made = PyTuple_Size(outputs), number = PyTuple_Size(launches);
  if (made < 1 || made > MOST_OUTPUTS || number < 1 || number > MOST_LAUNCHES) {
    if (!PyErr_Occurred()) PyErr_SetString(PyExc_ValueError, "plan: expected one or two outputs of one to four launches");
    return NULL;
  }
  Plan* plan = PyMem_Calloc(1, sizeof(Plan));
  if (!plan) { PyErr_NoMemory(); return NULL; }
  plan->references = 1;
  plan->area = area;
  plan->workspace = workspace;
  plan->counters = counters;
  plan->launches = (int)number;
  for (Py_ssize_t i = 0; i < made; i++) {
    PyObject** output = plan->output[i];
    PyObject* one = PyTuple_GetItem(outputs, i);
    if (!one || !PyArg_ParseTuple(one, "OOO", &output[0], &output[1], &output[2])) goto wrong;
    for (int j = 0; j < 3; j++) Py_IncRef(output[j]);
    plan->outputs++;
  }
  for (Py_ssize_t i = 0; i < number; i++) {
    Launch* launch = &plan->launch[i];
    unsigned long long function;
    PyObject* arguments;
    PyObject* one = PyTuple_GetItem(launches, i);
    if (!one || !PyArg_ParseTuple(one, "KIIIIO", &function, &launch->gx, &launch->gy, &launch->threads,
                                  &launch->shared, &arguments)) goto wrong;
    launch->function = (void*)(uintptr_t)function;
    Py_ssize_t count = PyTuple_Size(arguments);
    if (count < 0 || count > MOST_ARGUMENTS) {
      if (!PyErr_Occurred()) PyErr_SetString(PyExc_ValueError, "arguments: expected at most 64");
      goto wrong;
    }
    launch->count = (int)count;
    for (Py_ssize_t j = 0; j < count; j++) {
      int code;
      long long value;
      PyObject* argument = PyTuple_GetItem(arguments, j);
      if (!argument || !PyArg_ParseTuple(argument, "iL", &code, &value)) goto wrong;
      if (code < POINTER || code > SCALE || (code == POINTER && (value < 0 || value >= TENSORS)) ||
          (code == OUTPUT && (value < 0 || value >= made))) {
        PyErr_SetString(PyExc_ValueError, "code: expected one of those that native.c lists");
        goto wrong;
      }
      launch->code[j] = (unsigned char)code;
      launch->value[j] = value;
    }
  }
  return plan;
wrong:
  let_go(plan);
  return NULL;
}

/* ---- workspace that a stream keeps ---- */

typedef struct Room {
  struct Room* next;
  int device;
  void *stream, *counters, *workspace;
  int64_t count, bytes;
  PyObject* hold; /* the two tensors */
} Room;

static Room* rooms;

/* Address of a tensor's first element, or NULL with an exception. */
static void* address_of(PyObject* tensor) {
  DLTensor t;
  if (exchange->dltensor_from_py_object_no_sync(tensor, &t)) return NULL;
  return (char*)t.data + t.byte_offset;
}

/* Counters and workspace for a call on `stream`. A stream orders its launches, so that they may share both. */
static Room* room_for(int device, void* stream, int64_t counters, int64_t bytes) {
  Room* room = rooms;
  while (room && (room->device != device || room->stream != stream)) room = room->next;
  if (room && room->count >= counters && room->bytes >= bytes) return room;
  int64_t count = room && room->count > counters ? room->count : counters;
  int64_t most = room && room->bytes > bytes ? room->bytes : bytes;
  PyObject* hold = PyObject_CallFunction(make_room, "KLL", (unsigned long long)(uintptr_t)stream, (long long)count,
                                         (long long)most);
  if (!hold) return NULL;
  PyObject *zeros, *space;
  long long has_zeros, has_bytes;
  if (!PyArg_ParseTuple(hold, "OOLL", &zeros, &space, &has_zeros, &has_bytes)) { Py_DecRef(hold); return NULL; }
  void *zeros_at = address_of(zeros), *space_at = zeros_at ? address_of(space) : NULL;
  if (!space_at) { Py_DecRef(hold); return NULL; }
  /* Another thread may have made room for the same stream meanwhile: the list is looked through again. */
  room = rooms;
  while (room && (room->device != device || room->stream != stream)) room = room->next;
  PyObject* old = NULL;
  if (!room) {
    room = PyMem_Calloc(1, sizeof(Room));
    if (!room) { Py_DecRef(hold); PyErr_NoMemory(); return NULL; }
    room->device = device;
    room->stream = stream;
    room->next = rooms;
    rooms = room;
  } else {
    old = room->hold;
  }
  room->counters = zeros_at;
  room->workspace = space_at;
  room->count = has_zeros;
  room->bytes = has_bytes;
  room->hold = hold;
  Py_DecRef(old); /* launches that still use it come before any other use of that memory on the stream */
  return room;
}

static void clear_rooms(void) {
  while (rooms) {
    Room* room = rooms;
    rooms = room->next;
    Py_DecRef(room->hold);
    PyMem_Free(room);
  }
}

/* ---- is it an ordinary call? ---- */

enum { NO = 0, YES = 1, FAILED = -1 };

static int raw_repr(PyObject* keys, uint64_t* number) {
  if (!keys) return FAILED;
  PyObject* raw = PyObject_CallMethodObjArgs(keys, name_raw_repr, NULL);
  Py_DecRef(keys);
  if (!raw) return FAILED;
  *number = PyLong_AsUnsignedLongLong(raw);
  Py_DecRef(raw);
  return PyErr_Occurred() ? FAILED : YES;
}

/* A call that returns a bool. */
static int truth_of(PyObject* answer) {
  if (!answer) return FAILED;
  int truth = PyObject_IsTrue(answer);
  Py_DecRef(answer);
  return truth;
}

/* Whether a gradient is wanted: what most calls fail by that are not served here. */
static int is_differentiated(PyObject** tensors) {
  int grad = truth_of(PyObject_CallNoArgs(grad_enabled));
  if (grad != YES) return grad;
  for (int i = 0; i < TENSORS; i++) {
    int wanted = tensors[i] ? truth_of(PyObject_GetAttr(tensors[i], name_requires_grad)) : NO;
    if (wanted != NO) return wanted;
  }
  return NO;
}

/* runtime/private.py's `ordinary`. */
static int is_ordinary(PyObject** tensors) {
  for (int i = 0; i < TENSORS; i++) {
    uint64_t keys;
    if (!tensors[i]) continue;
    if (raw_repr(PyObject_CallFunctionObjArgs(keys_of, tensors[i], NULL), &keys) == FAILED) return FAILED;
    if (keys != usual_keys[0] && keys != usual_keys[1] && keys != usual_keys[2] && keys != usual_keys[3]) return NO;
  }
  uint64_t adds, takes;
  if (raw_repr(PyObject_CallNoArgs(included), &adds) == FAILED) return FAILED;
  if (raw_repr(PyObject_CallNoArgs(excluded), &takes) == FAILED) return FAILED;
  if ((adds & ~added_keys) || (takes & cast_keys) != cast_keys || ((takes & autograd_keys) && (adds & inplace_key)))
    return NO;
  PyObject* level = PyObject_GetAttr(forward_ad, name_level);
  if (!level) return FAILED;
  long depth = PyLong_AsLong(level);
  Py_DecRef(level);
  if (depth >= 0) return NO;
  if (PyErr_Occurred()) return FAILED;
  int listens = truth_of(PyObject_CallNoArgs(profiling));
  return listens == FAILED ? FAILED : !listens;
}

/* ---- the call ---- */

static int is_tensor(PyObject* object) {
  PyTypeObject* type = Py_TYPE(object);
  return (PyObject*)type == tensor_type || (PyObject*)type == parameter_type;
}

/* Reads a tensor into the key. NO where it is not of the devices that are served. */
static int read_tensor(PyObject* object, DLTensor* t, uint64_t* word, uint64_t* device) {
  if (exchange->dltensor_from_py_object_no_sync(object, t)) return FAILED;
  if (t->device.device_type != device_type || t->ndim > 4 || t->dtype.lanes != 1 || !t->strides) return NO;
  if (*device != 0 && *device != (uint64_t)t->device.device_id + 1) return NO;
  *device = (uint64_t)t->device.device_id + 1;
  uint64_t address = (uint64_t)(uintptr_t)t->data + t->byte_offset;
  word[0] = 1 + (uint64_t)t->ndim;
  word[1] = (uint64_t)t->dtype.code << 8 | t->dtype.bits;
  word[2] = address % 16;
  for (int d = 0; d < t->ndim; d++) {
    word[3 + d] = (uint64_t)t->shape[d];
    word[7 + d] = (uint64_t)t->strides[d];
  }
  return YES;
}

/* "auto", "triton", ... as a number; NO for anything else, which the way through Python refuses. */
static int read_backend(PyObject* name, uint64_t* word) {
  static const char* const names[] = {"auto", "triton", "cupy", "torch"};
  if (Py_TYPE(name) != &PyUnicode_Type) return NO;
  for (int i = 0; i < 4; i++)
    if (PyUnicode_CompareWithASCIIString(name, names[i]) == 0) { *word = (uint64_t)i; return YES; }
  return NO;
}

static int read_int(PyObject* object, uint64_t* word) {
  if (Py_TYPE(object) != &PyLong_Type) return NO; /* True and numpy's integers are Python's to judge */
  int overflow;
  long long value = PyLong_AsLongLongAndOverflow(object, &overflow);
  if (overflow) return NO;
  *word = (uint64_t)value;
  return YES;
}

/* An int, or a tuple of two. */
static int read_pair(PyObject* object, uint64_t* word) {
  if (Py_TYPE(object) == &PyTuple_Type) {
    if (PyTuple_Size(object) != 2) return NO;
    return read_int(PyTuple_GetItem(object, 0), word) && read_int(PyTuple_GetItem(object, 1), word + 1);
  }
  return read_int(object, word) && read_int(object, word + 1);
}

/* The multiplier as a number, or as a tensor. */
static int read_multiplier(PyObject* given, double* scale, PyObject** tensor) {
  *scale = 1.0;
  *tensor = NULL;
  if (Py_TYPE(given) == &PyFloat_Type) { *scale = PyFloat_AsDouble(given); return YES; }
  if (Py_TYPE(given) == &PyLong_Type) {
    *scale = PyLong_AsDouble(given);
    return PyErr_Occurred() ? FAILED : YES;
  }
  if (!is_tensor(given)) return NO;
  *tensor = given;
  return YES;
}

static int start(Plan* plan, const DLTensor* t, char** out, char* workspace, void* counters, double scale, void* stream) {
  for (int i = 0; i < plan->launches; i++) {
    const Launch* launch = &plan->launch[i];
    union { int64_t integer; double number; void* pointer; } slot[MOST_ARGUMENTS];
    void* parameters[MOST_ARGUMENTS];
    for (int j = 0; j < launch->count; j++) {
      int64_t value = launch->value[j];
      switch (launch->code[j]) {
        case POINTER: slot[j].pointer = (char*)t[value].data + t[value].byte_offset; break;
        case WORKSPACE: slot[j].pointer = workspace + value; break;
        case COUNTERS: slot[j].pointer = counters; break;
        case OUTPUT: slot[j].pointer = out[value]; break;
        case INTEGER: slot[j].integer = value; break;
        case MEAN: slot[j].number = scale / plan->area; break;
        default: slot[j].number = scale;
      }
      parameters[j] = &slot[j];
    }
    if (launch_kernel(launch->function, launch->gx, launch->gy, 1, launch->threads, 1, 1, launch->shared, stream,
                      parameters, NULL)) return NO;
  }
  return YES;
}

/* Allocates and launches. Returns the output, or a tuple of them, or NULL with or without an exception. */
static PyObject* run(Plan* plan, PyObject** tensors, int device, double scale) {
  int current = -1, capturing = 0;
  void* stream = NULL;
  if (current_device(&current) || current != device) return NULL;
  if (exchange->current_work_stream(device_type, device, &stream)) return NULL;
  if (is_capturing(stream, &capturing) || capturing) return NULL;
  PyObject *out[MOST_OUTPUTS] = {NULL, NULL}, *own = NULL, *answer = NULL;
  char *at[MOST_OUTPUTS] = {NULL, NULL}, *workspace = NULL;
  for (int i = 0; i < plan->outputs; i++) {
    out[i] = PyObject_CallFunctionObjArgs(empty_strided, plan->output[i][0], plan->output[i][1], plan->output[i][2], NULL);
    at[i] = out[i] ? address_of(out[i]) : NULL;
    if (!at[i]) goto done;
  }
  Room* room = NULL;
  if (plan->workspace > KEPT_BYTES) { /* too much to keep */
    own = PyObject_CallFunction(make_room, "KLL", 0ull, 0ll, (long long)plan->workspace);
    PyObject* space = own ? PyTuple_GetItem(own, 1) : NULL;
    workspace = space ? address_of(space) : NULL;
    if (!workspace) goto done;
  }
  int64_t kept_bytes = own ? 0 : plan->workspace;
  if (plan->counters || kept_bytes) {
    room = room_for(device, stream, plan->counters, kept_bytes);
    if (!room) goto done;
    if (!own) workspace = room->workspace;
  }
  /* Addresses are read last: from here on no other thread runs. */
  DLTensor t[TENSORS];
  memset(t, 0, sizeof t);
  for (int i = 0; i < TENSORS; i++)
    if (tensors[i] && exchange->dltensor_from_py_object_no_sync(tensors[i], &t[i])) goto done;
  void* counters = room ? room->counters : at[0];
  if (start(plan, t, at, workspace ? workspace : at[0], counters, scale, stream) != YES) goto done;
  if (plan->outputs == 1) {
    answer = out[0];
    out[0] = NULL;
  } else {
    answer = PyTuple_New(plan->outputs);
    for (int i = 0; answer && i < plan->outputs; i++) {
      PyTuple_SetItem(answer, i, out[i]);
      out[i] = NULL;
    }
  }
done:
  Py_DecRef(own);
  for (int i = 0; i < MOST_OUTPUTS; i++) Py_DecRef(out[i]);
  return answer;
}

static PyObject* no(void) {
  misses++;
  /* What went wrong goes wrong again on the way through Python, which says so. An interrupt is not to be lost. */
  if (PyErr_Occurred()) {
    if (!PyErr_ExceptionMatches(PyExc_Exception)) return NULL;
    PyErr_Clear();
  }
  return Py_NewRef(Py_None);
}

/* Looks the call up, or has it planned, and runs it. */
static PyObject* serve(Key* key, PyObject** tensors, int device, double scale, PyObject* planner, PyObject* const* arguments,
                       Py_ssize_t count) {
  if (is_ordinary(tensors) != YES) return no();
  uint64_t hash = hash_of(key);
  Entry* entry = find(key, hash);
  Plan* plan;
  if (entry) {
    plan = entry->plan;
    if (!plan) return no();
    plan->references++;
  } else {
    PyObject* packed = PyTuple_New(count);
    if (!packed) return no();
    for (Py_ssize_t i = 0; i < count; i++) {
      Py_IncRef(arguments[i]);
      PyTuple_SetItem(packed, i, arguments[i]);
    }
    PyObject* given = PyObject_Call(planner, packed, NULL);
    Py_DecRef(packed);
    if (!given) return no();
    plan = given == Py_None ? NULL : plan_from(given);
    Py_DecRef(given);
    if (PyErr_Occurred()) return no();
    /* Another thread may have planned the same call meanwhile. */
    if (!find(key, hash) && remember(key, hash, plan)) { let_go(plan); return no(); }
    if (!plan) return no();
  }
  PyObject* out = run(plan, tensors, device, scale);
  let_go(plan);
  if (!out) return no();
  hits++;
  return out;
}

/* tail(y, multiplier, backend) */
static PyObject* tail(PyObject* self, PyObject* const* a, Py_ssize_t count) {
  if (!enabled || count != 3 || !is_tensor(a[0])) return no();
  if (truth_of(PyObject_CallFunctionObjArgs(has_torch_function, a[0], a[1], NULL)) != NO) return no();
  Key key;
  memset(&key, 0, sizeof key);
  uint64_t device = 0;
  double scale;
  DLTensor t;
  PyObject* tensors[TENSORS] = {a[0], NULL, NULL, NULL};
  if (read_backend(a[2], &key.word[1]) != YES || read_multiplier(a[1], &scale, &tensors[3]) != YES) return no();
  if (is_differentiated(tensors) != NO) return no();
  if (read_tensor(a[0], &t, &key.word[4], &device) != YES) return no();
  if (tensors[3] && read_tensor(tensors[3], &t, &key.word[4 + 3 * 11], &device) != YES) return no();
  key.word[0] = 1;
  key.word[2] = device;
  return serve(&key, tensors, (int)device - 1, scale, plan_tail, a, count);
}

/* chain(x, weight, bias, multiplier, stride, padding, output_padding, dilation, groups, strategy, backend) */
static PyObject* chain(PyObject* self, PyObject* const* a, Py_ssize_t count) {
  if (!enabled || count != 11 || !is_tensor(a[0]) || !is_tensor(a[1]) || (a[2] != Py_None && !is_tensor(a[2]))) return no();
  if (truth_of(PyObject_CallFunctionObjArgs(has_torch_function, a[0], a[1], a[2], a[3], NULL)) != NO) return no();
  if (Py_TYPE(a[9]) != &PyUnicode_Type || PyUnicode_CompareWithASCIIString(a[9], "collapsed")) return no();
  Key key;
  memset(&key, 0, sizeof key);
  uint64_t device = 0, *options = &key.word[4 + TENSORS * 11];
  double scale;
  DLTensor t;
  PyObject* tensors[TENSORS] = {a[0], a[1], a[2] == Py_None ? NULL : a[2], NULL};
  if (read_backend(a[10], &key.word[1]) != YES || read_multiplier(a[3], &scale, &tensors[3]) != YES) return no();
  if (is_differentiated(tensors) != NO) return no();
  for (int i = 0; i < 4; i++)
    if (read_pair(a[4 + i], &options[2 * i]) != YES) return no();
  if (read_int(a[8], &options[8]) != YES) return no();
  for (int i = 0; i < TENSORS; i++)
    if (tensors[i] && read_tensor(tensors[i], &t, &key.word[4 + i * 11], &device) != YES) return no();
  key.word[0] = 2;
  key.word[2] = device;
  return serve(&key, tensors, (int)device - 1, scale, plan_chain, a, count);
}

/* ---- plans that Python keeps: the parts of a derivative ---- */

static const char* const CAPSULE = "convgap plan";

static void free_capsule(PyObject* capsule) { let_go(PyCapsule_GetPointer(capsule, CAPSULE)); }

static PyObject* plan(PyObject* self, PyObject* given) {
  Plan* made = plan_from(given);
  if (!made) return NULL;
  PyObject* capsule = PyCapsule_New(made, CAPSULE, free_capsule);
  if (!capsule) let_go(made);
  return capsule;
}

/* execute(plan, scale, *tensors), for tensors that the caller found ordinary */
static PyObject* execute(PyObject* self, PyObject* const* a, Py_ssize_t count) {
  PyObject* tensors[TENSORS] = {NULL, NULL, NULL, NULL};
  if (!enabled || count < 3 || count > 2 + TENSORS) return no();
  Plan* found = PyCapsule_GetPointer(a[0], CAPSULE);
  double scale = PyFloat_AsDouble(a[1]);
  if (!found || PyErr_Occurred()) return no();
  for (Py_ssize_t i = 2; i < count; i++) {
    if (a[i] == Py_None) continue;
    if (!is_tensor(a[i])) return no();
    tensors[i - 2] = a[i];
  }
  DLTensor first;
  if (!tensors[0] || exchange->dltensor_from_py_object_no_sync(tensors[0], &first)) return no();
  if (first.device.device_type != device_type) return no();
  found->references++;
  PyObject* out = run(found, tensors, first.device.device_id, scale);
  let_go(found);
  if (!out) return no();
  hits++;
  return out;
}

/* ---- set-up ---- */

static PyObject* configure(PyObject* self, PyObject* settings) {
  const char *library;
  PyObject *capsule, *keys;
  unsigned long long added, inplace, cast, autograd;
  PyObject *o[13];
  if (!PyArg_ParseTuple(settings, "siOOOOOOOOOOOOOOO(KKKK)", &library, &device_type, &capsule, &keys, &o[0], &o[1], &o[2],
                        &o[3], &o[4], &o[5], &o[6], &o[7], &o[8], &o[9], &o[10], &o[11], &o[12], &added, &inplace, &cast,
                        &autograd)) return NULL;
  const Exchange* found = PyCapsule_GetPointer(capsule, "dlpack_exchange_api");
  if (!found) return NULL;
  while (found && found->header.version.major != 1) found = (const Exchange*)found->header.prev_api;
  if (!found || !found->dltensor_from_py_object_no_sync || !found->current_work_stream)
    return PyErr_Format(PyExc_RuntimeError, "torch offers no DLPack 1 functions that read tensors");
  void* driver = dlopen(library, RTLD_NOW);
  if (!driver) return PyErr_Format(PyExc_RuntimeError, "%s", dlerror());
  *(void**)&launch_kernel = dlsym(driver, "cuLaunchKernel");
  *(void**)&current_device = dlsym(driver, "cuCtxGetDevice");
  *(void**)&is_capturing = dlsym(driver, "cuStreamIsCapturing");
  if (!launch_kernel || !current_device || !is_capturing)
    return PyErr_Format(PyExc_RuntimeError, "%s lacks a function that launches kernels", library);
  Py_ssize_t number = PyTuple_Size(keys);
  if (number < 1 || number > 4) return PyErr_Format(PyExc_ValueError, "keys: expected a tuple of one to four numbers");
  for (int i = 0; i < 4; i++) {
    usual_keys[i] = PyLong_AsUnsignedLongLong(PyTuple_GetItem(keys, i < number ? i : 0));
    if (PyErr_Occurred()) return NULL;
  }
  added_keys = added;
  inplace_key = inplace;
  cast_keys = cast;
  autograd_keys = autograd;
  PyObject** to[13] = {&tensor_type, &parameter_type, &has_torch_function, &grad_enabled, &keys_of, &included, &excluded,
                       &profiling, &forward_ad, &empty_strided, &plan_tail, &plan_chain, &make_room};
  for (int i = 0; i < 13; i++) {
    PyObject* old = *to[i];
    Py_IncRef(o[i]);
    *to[i] = o[i];
    Py_DecRef(old);
  }
  clear_table();
  clear_rooms();
  exchange = found;
  enabled = 1;
  return Py_NewRef(Py_None);
}

static PyObject* disable(PyObject* self, PyObject* none) {
  enabled = 0;
  return Py_NewRef(Py_None);
}

static PyObject* clear(PyObject* self, PyObject* none) {
  clear_table();
  clear_rooms();
  return Py_NewRef(Py_None);
}

static PyObject* counts(PyObject* self, PyObject* none) {
  return Py_BuildValue("KKi", hits, misses, kept);
}

static PyMethodDef methods[] = {
    {"tail", (PyCFunction)(void (*)(void))tail, METH_FASTCALL, "tail(y, multiplier, backend) -> output, or None: not here."},
    {"chain", (PyCFunction)(void (*)(void))chain, METH_FASTCALL,
     "chain(x, weight, bias, multiplier, stride, padding, output_padding, dilation, groups, strategy, backend) -> output, "
     "or None: not here."},
    {"plan", plan, METH_O, "A plan to be executed; see plan_from."},
    {"execute", (PyCFunction)(void (*)(void))execute, METH_FASTCALL,
     "execute(plan, scale, *tensors) -> output or outputs, or None: not here."},
    {"configure", configure, METH_VARARGS, "Everything that is used from Python; see runtime/native.py."},
    {"disable", disable, METH_NOARGS, "Answer every call with None from now on."},
    {"clear", clear, METH_NOARGS, "Forget plans and workspace."},
    {"counts", counts, METH_NOARGS, "(calls that were served, calls that were not, plans that are kept)."},
    {NULL, NULL, 0, NULL},
};

static struct PyModuleDef definition = {PyModuleDef_HEAD_INIT, "native", NULL, -1, methods, NULL, NULL, NULL, NULL};

PyMODINIT_FUNC PyInit_native(void) {
  name_raw_repr = PyUnicode_InternFromString("raw_repr");
  name_requires_grad = PyUnicode_InternFromString("requires_grad");
  name_level = PyUnicode_InternFromString("_current_level");
  if (!name_raw_repr || !name_requires_grad || !name_level) return NULL;
  return PyModule_Create(&definition);
}
