/* Workspace and counters that launches of one stream share. */

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
