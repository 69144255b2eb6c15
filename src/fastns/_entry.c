/* The entry point of the extension: refuses to be loaded where it cannot work, before Cython's own begins.
 *
 * The engine is one for the process: a start calls back into Python, for signals, by the GIL state of the main
 * interpreter, and what it caches (plans' cgroups, namespaces, the classes of results) are objects of the
 * interpreter that made them. Cython alone would give the extension to the interpreter that asks first, and
 * the main one would go without.
 *
 * Since Python 3.13 this function runs in the main interpreter whoever imports; an interpreter with a GIL
 * of its own is then refused by Python, as the extension's slots ask (Py_mod_multiple_interpreters).
 * They also say that it needs the GIL (Py_mod_gil): its objects are guarded by nothing else.
 */
#include <Python.h>

#undef PyInit__core /* setup.py: the name that Cython's own has instead is fns_core_init */
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
