"""Cases that other tests try: the page's number of each -> a test, and what it is."""

ELSEWHERE = {
    "A1": ("sandbox/test_hostile_handles.py::test_the_callers_program_is_out_of_reach",
           "/proc/self/exe, links and #! lines of it"),
    "A2": ("sandbox/test_hostile_handles.py::test_directories_of_the_caller",
           "64 directories, named by fd"),
    "A3": ("sandbox/test_hostile_handles.py::test_census", "fds while threads open others"),
    "A6": ("sandbox/test_caller_unharmed.py::test_thousands_of_spawns_change_nothing",
           "dumpable flag, owner, signal mask"),
    "A7": ("sandbox/test_child_rule.py::test_changed_ids_are_raw_calls", "seen by strace"),
    "B1": ("sandbox/test_hostile_root.py::test_a_root_that_changes_meanwhile",
           "names that are exchanged"),
    "B1 template": ("sandbox/test_hostile_root.py::test_a_template_of_one_that_changes",
                    "the same"),
    "B2": ("sandbox/test_hostile_root.py::test_a_special_directory_that_is_a_link",
           "/proc, /sys and /dev"),
    "B5": ("sandbox/test_system_paths.py::test_what_is_written_to_proc_is_written_to_proc",
           "id maps"),
    "B5 again": ("sandbox/test_system_paths.py::test_a_proc_that_is_not_one_is_refused", "masks"),
    "B7": ("sandbox/test_hostile_root.py::test_a_source_that_changes_meanwhile",
           "a bind's source"),
    "C11": ("sandbox/test_privilege.py::test_no_program_gains_anything",
            "setuid programs, file capabilities"),
    "F3": ("sandbox/test_tmpfs_size.py::test_an_inode_bomb", "without a limit of memory"),
    "F4": ("sandbox/test_tmpfs_size.py::test_a_full_disk", "every tmpfs, an overlay's layer"),
    "F11": ("sandbox/test_cpu_time.py::{any}", "cpu_time"),
}  # fmt: skip
"""`{any}`: all tests of that file. Each has its control beside it."""
