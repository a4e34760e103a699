"""Who runs PostgreSQL when this program runs as root: PostgreSQL itself refuses to be root.

It is an account of its own, so that no other service of the machine can read the cluster. That account has to walk to
the data folder and to the programs, and either may be below a folder that only root can enter. Permissions are widened
for nobody else: the account alone gets the right to walk through such a folder (not to list it), by an entry in the
folder's access control list.
"""

import grp
import logging
import os
import pwd
import shutil
import struct
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from storage.errors import StartupError

_log = logging.getLogger(__name__)

ACCOUNT_NAME: Final = "spectral-notify"
_WAYS_OUT: Final = (
    "Choose another SPECTRAL_DATA_DIR, such as /var/lib/spectral-notify, install spectral-notify where every account "
    "may read it, start it as an ordinary user, or set SPECTRAL_DATABASE_URL."
)
_TOOL_TIMEOUT_S: Final = 30
_SYSTEM_FOLDERS: Final = "/usr/sbin:/usr/bin:/sbin:/bin"

# How Linux writes an access control list: a version, then a tag, permissions and an ID per entry, in the order of tags.
_ACL: Final = "system.posix_acl_access"
_VERSION: Final = struct.pack("<I", 2)
_ENTRY: Final = struct.Struct("<HHI")
_USER_OBJ, _USER, _GROUP_OBJ, _GROUP, _MASK, _OTHER = 0x01, 0x02, 0x04, 0x08, 0x10, 0x20
_NO_ID: Final = 0xFFFF_FFFF
_SEARCH: Final = 1

_Acl = dict[tuple[int, int], int]


@dataclass(frozen=True, slots=True)
class Account:
    """Whom PostgreSQL's programs run as."""

    name: str
    uid: int
    gid: int


def account_for(cluster: Path) -> Account | None:
    """Who runs PostgreSQL: None for whoever runs this program, an account of its own when that is root."""
    if os.geteuid() != 0:
        return None
    if sys.platform != "linux":
        raise StartupError(
            "The embedded PostgreSQL runs as root on Linux only; start spectral-notify as an ordinary user, "
            "or set SPECTRAL_DATABASE_URL."
        )
    if cluster.exists() and (owner := cluster.stat()).st_uid != 0:
        # A cluster can only be run by its owner, who need not be ours: perhaps an ordinary user started this before.
        try:
            name = pwd.getpwuid(owner.st_uid).pw_name
        except KeyError:
            name = str(owner.st_uid)
        return Account(name, owner.st_uid, owner.st_gid)
    try:
        entry = pwd.getpwnam(ACCOUNT_NAME)
    except KeyError:
        entry = _create_account()
    return Account(entry.pw_name, entry.pw_uid, entry.pw_gid)


def as_account(account: Account | None) -> dict[str, Any]:
    """How to start a program as the account: the arguments for it."""
    if account is None:
        return {}
    return {"user": account.uid, "group": account.gid, "extra_groups": []}


def let_in(account: Account, folder: Path) -> None:
    """Let the account walk to a folder, and nobody else who could not before."""
    for step in (*reversed(folder.parents), folder):
        acl = _read_acl(step)
        if _may_enter(step, acl, account):
            continue
        try:
            _write_acl(step, _with_search(acl, account.uid))
        except OSError as error:
            raise StartupError(
                f"PostgreSQL does not run as root, and the account {account.name} that runs it cannot enter {step} "
                f"({error.strerror}). {_WAYS_OUT}"
            ) from error
        _log.info("The account %s, which runs PostgreSQL, may now walk through %s.", account.name, step)


def check_runs(account: Account, postgres: Path, data_dir: Path) -> None:
    """Run PostgreSQL as the account once: permissions are not all that can forbid it."""
    tried = subprocess.run(  # noqa: S603 - our own program
        ["/bin/sh", "-c", 'cd -- "$1" && exec "$2" --version', "sh", data_dir, postgres],
        **as_account(account),
        cwd="/",
        env={},
        capture_output=True,
        check=False,
        timeout=_TOOL_TIMEOUT_S,
    )
    if tried.returncode != 0:
        said = tried.stderr.decode(errors="replace").strip()
        raise StartupError(
            f"PostgreSQL does not run as root, and the account {account.name} cannot run it in {data_dir}: {said}. "
            f"{_WAYS_OUT}"
        )


def _create_account() -> pwd.struct_passwd:
    useradd = shutil.which("useradd", path=_SYSTEM_FOLDERS)
    advice = (
        f"Create a system account named {ACCOUNT_NAME}, start spectral-notify as an ordinary user, "
        "or set SPECTRAL_DATABASE_URL."
    )
    if useradd is None:
        raise StartupError(f"PostgreSQL does not run as root, and there is no useradd to make it an account. {advice}")
    nologin = shutil.which("nologin", path=_SYSTEM_FOLDERS) or "/bin/false"
    try:
        grp.getgrnam(ACCOUNT_NAME)
        group = ["--gid", ACCOUNT_NAME]
    except KeyError:
        group = ["--user-group"]
    tried = subprocess.run(  # noqa: S603 - the system's own program
        [useradd, "--system", "--no-create-home", "--shell", nologin, *group, ACCOUNT_NAME],
        capture_output=True,
        check=False,
        timeout=_TOOL_TIMEOUT_S,
    )
    try:
        # Another process may have made it at the same time, so what counts is whether it is there.
        entry = pwd.getpwnam(ACCOUNT_NAME)
    except KeyError:
        said = tried.stderr.decode(errors="replace").strip()
        raise StartupError(
            f"PostgreSQL does not run as root, and it could not be made an account: {said}. {advice}"
        ) from None
    _log.info("PostgreSQL does not run as root: it runs as the new system account %s.", ACCOUNT_NAME)
    return entry


def _read_acl(folder: Path) -> _Acl:
    try:
        stored = os.getxattr(folder, _ACL)
    except OSError:
        # None stored, or a file system that has none: the mode says all.
        mode = folder.stat().st_mode
        return {
            (_USER_OBJ, _NO_ID): mode >> 6 & 7,
            (_GROUP_OBJ, _NO_ID): mode >> 3 & 7,
            (_OTHER, _NO_ID): mode & 7,
        }
    return {(tag, owner): permissions for tag, permissions, owner in _ENTRY.iter_unpack(stored[len(_VERSION) :])}


def _write_acl(folder: Path, acl: _Acl) -> None:
    entries = (_ENTRY.pack(tag, permissions, owner) for (tag, owner), permissions in sorted(acl.items()))
    os.setxattr(folder, _ACL, _VERSION + b"".join(entries))


def _with_search(acl: _Acl, uid: int) -> _Acl:
    # The mask bounds the owner's group and every named entry. Whoever it held back until now must stay held back when
    # it is opened for the new entry, so what it left of each is written into the entry itself.
    mask = acl.get((_MASK, _NO_ID), 7)
    held = {
        (tag, owner): permissions & mask if tag in (_USER, _GROUP_OBJ, _GROUP) else permissions
        for (tag, owner), permissions in acl.items()
    }
    held[_USER, uid] = held.get((_USER, uid), 0) | _SEARCH
    held[_MASK, _NO_ID] = 0
    for (tag, _), permissions in held.items():
        if tag in (_USER, _GROUP_OBJ, _GROUP):
            held[_MASK, _NO_ID] |= permissions
    return held


def _may_enter(folder: Path, acl: _Acl, account: Account) -> bool:
    # The order is the kernel's: the first kind of entry that fits the account decides.
    owner = folder.stat()
    mask = acl.get((_MASK, _NO_ID), 7)
    if owner.st_uid == account.uid:
        return bool(acl[_USER_OBJ, _NO_ID] & _SEARCH)
    if (_USER, account.uid) in acl:
        return bool(acl[_USER, account.uid] & mask & _SEARCH)
    groups = [acl[_GROUP_OBJ, _NO_ID]] if owner.st_gid == account.gid else []
    if (_GROUP, account.gid) in acl:
        groups.append(acl[_GROUP, account.gid])
    if groups:
        return any(permissions & mask & _SEARCH for permissions in groups)
    return bool(acl[_OTHER, _NO_ID] & _SEARCH)
