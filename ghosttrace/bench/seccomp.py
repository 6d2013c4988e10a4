"""The seccomp filter of generated programs: which system calls they may not use.

The filter is what stops new processes: resource limits count the processes of a user, and none of them binds root.
"""

import struct

CLONE_THREAD, CLONE3 = 0x10000, 435
EPERM, ENOSYS = 1, 38

DENIED: dict[str, dict[str, tuple[int, ...]]] = {
    "starting programs": {"x86_64": (59, 322), "aarch64": (221, 281)},  # execve, execveat
    "processes": {"x86_64": (57, 58), "aarch64": ()},  # fork, vfork; aarch64 has clone alone
    "memory of processes": {"x86_64": (101, 310, 311), "aarch64": (117, 270, 271)},  # ptrace, process_vm_readv, _writev
    "namespaces": {"x86_64": (272, 308, 165), "aarch64": (97, 268, 40)},  # unshare, setns, mount
    "kernel keys": {"x86_64": (248, 249, 250), "aarch64": (217, 218, 219)},  # add_key, request_key, keyctl
    "memory that outlives a process": {"x86_64": (29, 68), "aarch64": (194, 186)},  # shmget, msgget
    # bpf, userfaultfd, perf_event_open, io_uring_setup, open_by_handle_at
    "much exploited": {"x86_64": (321, 323, 298, 425, 304), "aarch64": (280, 282, 241, 425, 265)},
}
"""Numbers of the denied system calls by architecture. Without capabilities most of them would fail by themselves."""

ARCHITECTURES = {"x86_64": (0xC000003E, 56), "aarch64": (0xC00000B7, 220)}
"""Audit number of the architecture, and the number of clone."""

_LOAD, _EQUAL, _AT_LEAST, _ANY_BIT, _RETURN = 0x20, 0x15, 0x35, 0x45, 0x06
_REFUSE, _ALLOW, _KILL = 0x00050000 | EPERM, 0x7FFF0000, 0x80000000
_NUMBER, _ARCHITECTURE, _FIRST_ARGUMENT = 0, 4, 16  # offsets in struct seccomp_data


def seccomp_filter(machine: str) -> bytes:
    """Return the BPF program that denies the calls in `DENIED`, new processes, and calls of another architecture.

    Args:
        machine: The processor as `platform.machine()` names it, a key of `ARCHITECTURES`.
    """
    architecture, clone = ARCHITECTURES[machine]
    # A rule is (operation, instructions to skip if true, if false, operand).
    rules = [(_LOAD, 0, 0, _ARCHITECTURE), (_EQUAL, 1, 0, architecture), (_RETURN, 0, 0, _KILL), (_LOAD, 0, 0, _NUMBER)]
    rules += [(_AT_LEAST, 0, 1, 0x40000000), (_RETURN, 0, 0, _REFUSE)]  # the x32 calls of x86_64
    for numbers in DENIED.values():
        for number in numbers[machine]:
            rules += [(_EQUAL, 0, 1, number), (_RETURN, 0, 0, _REFUSE)]
    # The flags of clone3 lie in memory, which a filter cannot read: without it, the C library calls clone.
    rules += [(_EQUAL, 0, 1, CLONE3), (_RETURN, 0, 0, 0x00050000 | ENOSYS)]
    rules += [(_EQUAL, 0, 3, clone), (_LOAD, 0, 0, _FIRST_ARGUMENT)]
    rules += [(_ANY_BIT, 1, 0, CLONE_THREAD), (_RETURN, 0, 0, _REFUSE), (_RETURN, 0, 0, _ALLOW)]
    return b"".join(struct.pack("HBBI", *rule) for rule in rules)
