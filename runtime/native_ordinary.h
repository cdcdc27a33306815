/* Whether a call is an ordinary one. */

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

/* Which tensors want a gradient: bit i for tensor i. */
static int wanted_gradients(PyObject** tensors) {
  int grad = truth_of(PyObject_CallNoArgs(grad_enabled));
  if (grad != YES) return grad;
  int found = 0;
  for (int i = 0; i < TENSORS; i++) {
    int wanted = tensors[i] ? truth_of(PyObject_GetAttr(tensors[i], name_requires_grad)) : NO;
    if (wanted == FAILED) return FAILED;
    found |= wanted << i;
  }
  return found;
}

/* This thread's keys as torch stores them; NULL where they cannot be found. */
static const uint64_t* stored_keys(void) {
  static __thread const uint64_t* own;
  if (!own) own = dlsym(keys_library, "_ZN3c104impl26raw_local_dispatch_key_setE");
  return own;
}

/* Keys that this thread adds to those of every call, and keys that it takes away. */
static int keys_of_thread(uint64_t* adds, uint64_t* takes) {
  if (reads_torch) {
    const uint64_t* stored = stored_keys();
    *adds = stored[0] ^ stored_as[0];
    *takes = stored[1] ^ stored_as[1];
    return YES;
  }
  if (raw_repr(PyObject_CallNoArgs(included), adds) == FAILED) return FAILED;
  return raw_repr(PyObject_CallNoArgs(excluded), takes) == FAILED ? FAILED : YES;
}

/* Whether a tensor that DLPack could read has the usual keys. One of exact type, with memory and of a real dtype can have
   two more: for a negation still to be done, and for names of its dimensions. */
static int is_usual(PyObject* tensor) {
  uint64_t keys;
  if (reads_torch) {
    PyObject* address = PyObject_GetAttr(tensor, name_cdata);
    void* implementation = address ? PyLong_AsVoidPtr(address) : NULL;
    Py_DecRef(address);
    if (!implementation) return FAILED;
    return !is_negated(&implementation) && !(has_names && has_names(implementation));
  }
  if (raw_repr(PyObject_CallFunctionObjArgs(keys_of, tensor, NULL), &keys) == FAILED) return FAILED;
  return keys == usual_keys[0] || keys == usual_keys[1] || keys == usual_keys[2] || keys == usual_keys[3];
}

/* runtime/private.py's `ordinary`. Each of its questions takes Python a sixth of a launch. */
static int is_ordinary(PyObject** tensors) {
  uint64_t adds, takes;
  if (keys_of_thread(&adds, &takes) != YES) return FAILED;
  if ((adds & ~added_keys) || (takes & cast_keys) != cast_keys || ((takes & autograd_keys) && (adds & inplace_key)))
    return NO;
  for (int i = 0; i < TENSORS; i++) {
    int usual = tensors[i] ? is_usual(tensors[i]) : YES;
    if (usual != YES) return usual;
  }
  PyObject* level = PyObject_GetAttr(forward_ad, name_level);
  if (!level) return FAILED;
  long depth = PyLong_AsLong(level);
  Py_DecRef(level);
  if (depth >= 0) return NO;
  if (PyErr_Occurred()) return FAILED;
  int listens = truth_of(PyObject_CallNoArgs(profiling));
  return listens == FAILED ? FAILED : !listens;
}

/* read_torch(included, excluded, named): read torch's libraries from now on, where they have what is looked for there. This
   thread's keys, which Python gives, tell how they are stored. read_torch(): ask Python again. */
static PyObject* read_torch(PyObject* self, PyObject* given) {
  unsigned long long adds = 0, takes = 0;
  int named = 0;
  reads_torch = 0;
  if (!PyTuple_Size(given)) return Py_NewRef(Py_None);
  if (!PyArg_ParseTuple(given, "KKi", &adds, &takes, &named)) return NULL;
  keys_library = dlopen("libc10.so", RTLD_NOW | RTLD_NOLOAD);
  void* tensors = dlopen("libtorch_cpu.so", RTLD_NOW | RTLD_NOLOAD);
  if (!keys_library || !tensors || !stored_keys()) return Py_NewRef(Py_None);
  *(void**)&is_negated = dlsym(tensors, "_ZN2at6native6is_negERKNS_6TensorE");
  *(void**)&has_names = named ? dlsym(tensors, "_ZN2at4impl9has_namesEPKN3c1010TensorImplE") : NULL;
  stored_as[0] = stored_keys()[0] ^ adds;
  stored_as[1] = stored_keys()[1] ^ takes;
  reads_torch = is_negated && (has_names || !named);
  return Py_NewRef(Py_None);
}

static PyObject* thread_keys(PyObject* self, PyObject* none) {
  uint64_t adds, takes;
  if (keys_of_thread(&adds, &takes) != YES) return NULL;
  return Py_BuildValue("KK", (unsigned long long)adds, (unsigned long long)takes);
}

static PyObject* usual(PyObject* self, PyObject* tensor) {
  int answer = is_usual(tensor);
  return answer == FAILED ? NULL : PyBool_FromLong(answer);
}
