/* Plans of calls, and the table in which they are found. */

/* ---- plans ---- */

enum { MOST_ARGUMENTS = 64, MOST_LAUNCHES = 4, MOST_OUTPUTS = 3, KEPT_PLANS = 4096, BUCKETS = 8192, KEPT_BYTES = 1 << 20 };
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
  PyObject* output[MOST_OUTPUTS][3]; /* size, stride, dtype; all NULL for one that is not wanted */
  double area; /* positions that the mean is taken over */
  int64_t workspace, counters; /* bytes, and int32 zeros */
  PyObject *apply, *kind;      /* of a call that is differentiated: what makes a node of autograd of it; see differentiate */
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
    Py_DecRef(plan->apply);
    Py_DecRef(plan->kind);
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

/* A plan from what convgap/plans.py gives:
   (((size, stride, dtype) or None, ...), area, workspace, counters,
    ((function, gx, gy, threads, shared, ((code, value), ...)), ...), (apply, kind) or None) */
static Plan* plan_from(PyObject* given) {
  PyObject *outputs, *launches, *node;
  double area;
  long long workspace, counters;
  if (!PyArg_ParseTuple(given, "OdLLOO", &outputs, &area, &workspace, &counters, &launches, &node)) return NULL;
  Py_ssize_t made = PyTuple_Size(outputs), number = PyTuple_Size(launches);
  if (made < 1 || made > MOST_OUTPUTS || number < 1 || number > MOST_LAUNCHES) {
    if (!PyErr_Occurred()) PyErr_SetString(PyExc_ValueError, "plan: expected one to three outputs of one to four launches");
    return NULL;
  }
  Plan* plan = PyMem_Calloc(1, sizeof(Plan));
  if (!plan) { PyErr_NoMemory(); return NULL; }
  plan->references = 1;
  plan->area = area;
  plan->workspace = workspace;
  plan->counters = counters;
  plan->launches = (int)number;
  if (node != Py_None) {
    PyObject *apply, *kind;
    if (!PyArg_ParseTuple(node, "OO", &apply, &kind)) goto wrong;
    plan->apply = Py_NewRef(apply);
    plan->kind = Py_NewRef(kind);
  }
  for (Py_ssize_t i = 0; i < made; i++) {
    PyObject** output = plan->output[i];
    PyObject *one = PyTuple_GetItem(outputs, i), *part[3];
    plan->outputs++;
    if (one == Py_None) continue;
    if (!one || !PyArg_ParseTuple(one, "OOO", &part[0], &part[1], &part[2])) goto wrong;
    for (int j = 0; j < 3; j++) output[j] = Py_NewRef(part[j]);
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
          (code == OUTPUT && (value < 0 || value >= made || !plan->output[value][0]))) {
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
