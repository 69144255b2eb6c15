"""The kernel's action for a system call, computed in two ways that must agree: by interpreting a
seccomp filter, and from a profile. Neither uses libseccomp."""

import ctypes
import functools
import struct

ARCHES = {"x86_64": 0xC000003E, "aarch64": 0xC00000B7, "x86": 0x40000003}
X32_BIT = 0x40000000
ALLOW, KILL_PROCESS, ERRNO = 0x7FFF0000, 0x80000000, 0x00050000
# The strictest first, in the kernel's order (seccomp(2)).
ORDER = (KILL_PROCESS, 0x00000000, 0x00030000, ERRNO, 0x7FF00000, 0x7FFC0000, ALLOW)


@functools.lru_cache(maxsize=64)
def instructions_of(code):
    return list(struct.iter_unpack("<HBBI", code))


def interpret(code, arch, number, args=()):
    """Run one filter; return its SECCOMP_RET_* value, including the data bits (seccomp(2))."""
    words = list(args) + [0] * (6 - len(args))
    data = struct.pack("<iIQ6Q", number - 2**32 if number >= 2**31 else number, arch, 0, *words)
    instructions = instructions_of(code)
    at = accumulator = 0
    scratch = [0] * 16
    while True:
        op, yes, no, k = instructions[at]
        at += 1
        if op == 0x15:  # BPF_JMP|JEQ|K
            at += yes if accumulator == k else no
        elif op == 0x25:  # BPF_JMP|JGT|K
            at += yes if accumulator > k else no
        elif op == 0x35:  # BPF_JMP|JGE|K
            at += yes if accumulator >= k else no
        elif op == 0x45:  # BPF_JMP|JSET|K
            at += yes if accumulator & k else no
        elif op == 0x20:  # BPF_LD|W|ABS
            assert k % 4 == 0
            assert k + 4 <= len(data)
            (accumulator,) = struct.unpack_from("<I", data, k)
        elif op == 0x06:  # BPF_RET|K
            return k
        elif op == 0x05:  # BPF_JMP|JA
            at += k
        elif op == 0x54:  # BPF_ALU|AND|K
            accumulator &= k
        elif op == 0x02:  # BPF_ST
            scratch[k] = accumulator
        elif op == 0x60:  # BPF_LD|MEM
            accumulator = scratch[k]
        else:
            raise AssertionError(f"unknown instruction: {op:#x}")


def together(actions):
    """The kernel's action when several filters apply: the strictest of theirs."""
    return min(actions, key=lambda action: ORDER.index(action & 0xFFFF0000))


COMPARE = {
    "SCMP_CMP_NE": lambda arg, one, _two: arg != one,
    "SCMP_CMP_LT": lambda arg, one, _two: arg < one,
    "SCMP_CMP_LE": lambda arg, one, _two: arg <= one,
    "SCMP_CMP_EQ": lambda arg, one, _two: arg == one,
    "SCMP_CMP_GE": lambda arg, one, _two: arg >= one,
    "SCMP_CMP_GT": lambda arg, one, _two: arg > one,
    "SCMP_CMP_MASKED_EQ": lambda arg, one, two: arg & one == two,
}
ACTIONS = {
    "SCMP_ACT_ALLOW": ALLOW,
    "SCMP_ACT_KILL": 0,
    "SCMP_ACT_KILL_PROCESS": KILL_PROCESS,
    "SCMP_ACT_LOG": 0x7FFC0000,
    "SCMP_ACT_TRAP": 0x00030000,
}


def action_of(name, number):
    if name == "SCMP_ACT_ERRNO":
        return ERRNO | (1 if number is None else number)
    return ACTIONS[name]


def prepared(rule):
    """A rule as its action, whether one true comparison is enough, and its comparisons."""
    given = rule.get("args") or []
    compared = [(COMPARE[x["op"]], x["index"], x["value"], x.get("valueTwo", 0)) for x in given]
    one_is_enough = len({index for _, index, _, _ in compared}) < len(compared)
    return action_of(rule["action"], rule.get("errnoRet")), one_is_enough, compared


def holds(one_is_enough, compared, args):
    for compare, index, one, two in compared:
        if compare(args[index], one, two) == one_is_enough:
            return one_is_enough
    return not one_is_enough


class Model:
    """A profile for one machine and one set of capabilities."""

    def __init__(self, profile, machine, caps=()):
        self.default = action_of(profile["defaultAction"], profile.get("defaultErrnoRet"))
        self.rules = {}
        for rule in profile["syscalls"]:
            needed = rule.get("includes", {}).get("caps", [])
            barred = rule.get("excludes", {}).get("caps", [])
            if set(needed) <= set(caps) and not set(barred) & set(caps):
                for name in rule["names"]:
                    self.rules.setdefault(name, []).append(prepared(rule))
        self.machine = machine

    def action(self, number, args):
        name = name_of(number, self.machine)
        rules = self.rules.get(name, [])
        found = {action for action, enough, compared in rules if holds(enough, compared, args)}
        assert len(found) < 2, f"{name}{args}: rules that contradict each other: {rules}"
        return found.pop() if found else self.default


@functools.cache
def name_of(number, machine):
    """The kernel's name for a call: from libseccomp's table or, for newer calls, from ours."""
    from fastns._policy.libseccomp import NEWER

    library = ctypes.CDLL("libseccomp.so.2")
    library.seccomp_syscall_resolve_num_arch.restype = ctypes.c_void_p
    found = library.seccomp_syscall_resolve_num_arch(ctypes.c_uint32(ARCHES[machine]), number)
    if found:
        return ctypes.string_at(found).decode()
    return next((name for name, known in NEWER.items() if known == number), None)
