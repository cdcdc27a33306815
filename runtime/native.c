/* The ordinary call of the operator on a CUDA device in C: from torch's tensors to the launches of its kernels.

   A call is looked up by its sizes, strides, dtypes, alignments, device, settings and the gradients that are wanted. What
   is found was worked out in Python at the first call of its kind (convgap/plans.py): the shapes of the outputs, the bytes
   of workspace, and up to four launches. What is left is to read addresses, to allocate the outputs, to launch, and to have
   a node of autograd made where a gradient is wanted. Whatever is not ordinary is answered with None, and the caller goes
   the way through Python.

   Tensors are read through DLPack's table of C functions, which torch offers as torch.Tensor.__dlpack_c_exchange_api__:
   no header of torch is needed and no release of torch is special. Of Python only the limited API of 3.11 is used, of
   CUDA three functions of the driver. Everything runs under the GIL, and between the first address that is read and the
   last launch nothing is called that could let another thread run: two calls never share workspace at the same time. */

#include "native_settings.h"

#include "native_ordinary.h"
#include "native_plans.h"
#include "native_rooms.h"

#include "native_launch.h"

/* ---- the call ---- */

static int is_tensor(PyObject* object) {
  PyTypeObject* type = Py_TYPE(object);
  return (PyObject*)type == tensor_type || (PyObject*)type == parameter_type;
}

/* Reads a tensor into the key. NO where it is not of the devices that are served. */
static int read_tensor(PyObject* object, DLTensor* t, uint64_t* word, uint64_t* device) {
  if (exchange->dltensor_from_py_object_no_sync(object, t)) return FAILED;
  /* A tensor that stands for zeros has no memory. */
  if (t->device.device_type != device_type || t->ndim > 4 || t->dtype.lanes != 1 || t->dtype.code == COMPLEX || !t->strides ||
      !t->data) return NO;
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

/* Which gradients are wanted; NO where one is that Python makes: the multiplier's. */
static int read_wanted(PyObject** tensors, uint64_t* word) {
  int wanted = wanted_gradients(tensors);
  if (wanted < 0) return FAILED;
  *word = (uint64_t)wanted;
  return !(wanted >> 3);
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

/* Looks the call up, or has it planned, and runs it. `inputs`: how many of the arguments a node takes as they are. */
static PyObject* serve(Key* key, PyObject** tensors, int device, double scale, PyObject* planner, PyObject* const* arguments,
                       Py_ssize_t count, int inputs) {
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
  if (out && plan->apply) {
    PyObject* made = out;
    out = differentiate(plan, arguments, inputs, tensors[3], scale, made);
    Py_DecRef(made);
  }
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
  if (read_wanted(tensors, &key.word[3]) != YES) return no();
  if (read_tensor(a[0], &t, &key.word[4], &device) != YES) return no();
  if (tensors[3] && read_tensor(tensors[3], &t, &key.word[4 + 3 * 11], &device) != YES) return no();
  key.word[0] = 1;
  key.word[2] = device;
  return serve(&key, tensors, (int)device - 1, scale, plan_tail, a, count, 1);
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
  if (read_wanted(tensors, &key.word[3]) != YES) return no();
  for (int i = 0; i < 4; i++)
    if (read_pair(a[4 + i], &options[2 * i]) != YES) return no();
  if (read_int(a[8], &options[8]) != YES) return no();
  for (int i = 0; i < TENSORS; i++)
    if (tensors[i] && read_tensor(tensors[i], &t, &key.word[4 + i * 11], &device) != YES) return no();
  key.word[0] = 2;
  key.word[2] = device;
  return serve(&key, tensors, (int)device - 1, scale, plan_chain, a, count, 3);
}

/* backward(number, kind, scale, grad, sums, weight): the number stands for all that `kind` says, which Python alone reads */
static PyObject* backward(PyObject* self, PyObject* const* a, Py_ssize_t count) {
  if (!enabled || count != 6 || !is_tensor(a[3]) || (a[4] != Py_None && !is_tensor(a[4])) || !is_tensor(a[5])) return no();
  /* Where a derivative of this is wanted, it is made of operators that have one. */
  if (truth_of(PyObject_CallNoArgs(grad_enabled)) != NO) return no();
  Key key;
  memset(&key, 0, sizeof key);
  uint64_t device = 0;
  DLTensor t;
  PyObject* tensors[TENSORS] = {a[4] == Py_None ? NULL : a[4], a[5], NULL, a[3]};
  if (read_int(a[0], &key.word[1]) != YES || Py_TYPE(a[2]) != &PyFloat_Type) return no();
  for (int i = 0; i < TENSORS; i++)
    if (tensors[i] && read_tensor(tensors[i], &t, &key.word[4 + i * 11], &device) != YES) return no();
  key.word[0] = 3;
  key.word[2] = device;
  return serve(&key, tensors, (int)device - 1, PyFloat_AsDouble(a[2]), plan_backward, a, count, 0);
}

/* ---- set-up ---- */

static PyObject* configure(PyObject* self, PyObject* settings) {
  const char *library;
  PyObject *capsule, *keys;
  unsigned long long added, inplace, cast, autograd;
  PyObject *o[14];
  if (!PyArg_ParseTuple(settings, "siOOOOOOOOOOOOOOOO(KKKK)", &library, &device_type, &capsule, &keys, &o[0], &o[1], &o[2],
                        &o[3], &o[4], &o[5], &o[6], &o[7], &o[8], &o[9], &o[10], &o[11], &o[12], &o[13], &added, &inplace,
                        &cast, &autograd)) return NULL;
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
  PyObject** to[14] = {&tensor_type, &parameter_type, &has_torch_function, &grad_enabled, &keys_of, &included, &excluded,
                       &profiling, &forward_ad, &empty_strided, &plan_tail, &plan_chain, &plan_backward, &make_room};
  for (int i = 0; i < 14; i++) {
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

static PyObject* reads(PyObject* self, PyObject* none) { return PyBool_FromLong(reads_torch); }

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
    {"backward", (PyCFunction)(void (*)(void))backward, METH_FASTCALL,
     "backward(number, kind, scale, grad, sums, weight) -> gradients of (x, weight, bias), or None: not here."},
    {"configure", configure, METH_VARARGS, "Everything that is used from Python; see runtime/native.py."},
    {"read_torch", read_torch, METH_VARARGS, "read_torch(included, excluded, named), or read_torch(); see native_ordinary.h."},
    {"reads_torch", reads, METH_NOARGS, "Whether torch's libraries are read, and Python is not asked."},
    {"thread_keys", thread_keys, METH_NOARGS, "(keys that this thread adds to a call's, keys that it takes away)."},
    {"usual", usual, METH_O, "Whether a tensor has no keys but the usual ones."},
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
  name_cdata = PyUnicode_InternFromString("_cdata");
  if (!name_raw_repr || !name_requires_grad || !name_level || !name_cdata) return NULL;
  return PyModule_Create(&definition);
}
