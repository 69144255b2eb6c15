/* The entry point of the extension: refuses to load in a subinterpreter, then calls Cython's own.
 *
 * A process has one engine. It calls back into Python with the GIL state of the main interpreter, and it caches
 * objects of the interpreter that created them (cgroups of plans, classes of results). Cython alone would bind
 * the extension to the first interpreter that imports it.
 *
 * Since Python 3.13 this function always runs in the main interpreter, and Python refuses the import in an
 * interpreter with a GIL of its own (Py_mod_multiple_interpreters). The extension needs the GIL (Py_mod_gil):
 * nothing else guards its objects.
 */
#include <Python.h>

#undef PyInit__core /* setup.py renames Cython's own to fns_core_init */
PyMODINIT_FUNC PyInit__core(void);
PyMODINIT_FUNC fns_core_init(void);

PyMODINIT_FUNC PyInit__core(void)
{
    if (PyInterpreterState_Get() != PyInterpreterState_Main()) {
        PyErr_SetString(PyExc_ImportError,
                        "fastns works in the main interpreter alone, not in a subinterpreter: "
                        "start sandboxes from a thread of the main interpreter");
        return NULL;
    }
    return fns_core_init();
}
