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
