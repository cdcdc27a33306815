/* A plan at work: outputs, workspace, launches. */

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

/* Allocates and launches. Returns the output, or a tuple of several (None for one that is not wanted), or NULL with or
   without an exception. */
static PyObject* run(Plan* plan, PyObject** tensors, int device, double scale) {
  int current = -1, capturing = 0;
  void* stream = NULL;
  if (current_device(&current) || current != device) return NULL;
  if (exchange->current_work_stream(device_type, device, &stream)) return NULL;
  if (is_capturing(stream, &capturing) || capturing) return NULL;
  PyObject *out[MOST_OUTPUTS] = {NULL}, *own = NULL, *answer = NULL;
  char *at[MOST_OUTPUTS] = {NULL}, *workspace = NULL;
  for (int i = 0; i < plan->outputs; i++) {
    if (!plan->output[i][0]) continue;
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
      PyTuple_SetItem(answer, i, out[i] ? out[i] : Py_NewRef(Py_None));
      out[i] = NULL;
    }
  }
done:
  Py_DecRef(own);
  for (int i = 0; i < MOST_OUTPUTS; i++) Py_DecRef(out[i]);
  return answer;
}

/* Makes what was launched the output of a node of autograd, apply(*inputs, multiplier, scale, kind, made): its first one.
   `made` is a tuple in any case, for a tensor would be taken for an input that the node returns. */
static PyObject* differentiate(const Plan* plan, PyObject* const* inputs, int count, PyObject* multiplier, double scale,
                               PyObject* made) {
  PyObject *given = PyTuple_New(count + 4), *number = PyFloat_FromDouble(scale), *answer = NULL;
  PyObject* all = Py_TYPE(made) == &PyTuple_Type ? Py_NewRef(made) : PyTuple_Pack(1, made);
  if (given && number && all) {
    for (int i = 0; i < count; i++) PyTuple_SetItem(given, i, Py_NewRef(inputs[i]));
    PyTuple_SetItem(given, count, Py_NewRef(multiplier ? multiplier : Py_None));
    PyTuple_SetItem(given, count + 1, Py_NewRef(number));
    PyTuple_SetItem(given, count + 2, Py_NewRef(plan->kind));
    PyTuple_SetItem(given, count + 3, Py_NewRef(all));
    answer = PyObject_CallObject(plan->apply, given);
  }
  Py_DecRef(given);
  Py_DecRef(number);
  Py_DecRef(all);
  if (!answer || Py_TYPE(answer) != &PyTuple_Type) return answer;
  PyObject* first = PyTuple_GetItem(answer, 0);
  if (first) Py_IncRef(first);
  Py_DecRef(answer);
  return first;
}
