"""The policy store: published versions, on a shared disk or elsewhere.

policy.py     versions as folders, the manifest last; publish, retention
pickup.py     a version in a folder of a rollout server's own: linked, rebuilt from patches, verified
rebuild.py    patches applied one after the other
mirror.py     the same with the truth elsewhere: uploads, downloads
remote.py     the place elsewhere, behind fsspec; its errors in the operator's words
download.py   ranged, parallel, resumed where it broke
pace.py       the bandwidth limit
opening.py    which of these a configuration asks for
files.py      single files: bounded reads, checksums, links
"""

from shared.store.files import MAX_SMALL, check, read_small, stored_file, sync_folder, write_durably
from shared.store.opening import open_store
from shared.store.policy import HELD, PolicyStore

__all__ = [
    "HELD",
    "MAX_SMALL",
    "PolicyStore",
    "check",
    "open_store",
    "read_small",
    "stored_file",
    "sync_folder",
    "write_durably",
]
