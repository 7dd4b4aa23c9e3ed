"""fwstore keeps the checkpoints of training runs: sharded, deduplicated, verified, one writer per run.

    import fwstore

    repository = fwstore.open("s3://bucket/prefix")        # or a directory
    run = repository.run("meta-llama/Llama-3.1-70B")
    with run.writer() as writer:                           # on every rank
        handle = writer.save(step, state, metrics={"loss": 2.1})
        handle.result()                                    # durable and committed
    state = run.latest().load()

Invariant: everything public is in `__all__`; nothing here imports torch, boto3, zarr, tensorstore or fsspec.
"""

from fwstore.base.config import VERSION as __version__  # noqa: N811 - the conventional name
from fwstore.base.config import Limits
from fwstore.base.errors import (
    AlreadyExists,
    Conflict,
    Corrupt,
    Expired,
    Fenced,
    FwstoreError,
    InternalError,
    InvalidInput,
    LimitExceeded,
    NotFound,
    PermissionDenied,
    Unavailable,
    Unsupported,
    UnsupportedValue,
)
from fwstore.base.topology import Topology
from fwstore.base.units import format_duration, format_rate, format_size, parse_duration, parse_size
from fwstore.care.problems import VerifyReport
from fwstore.checkpoint.adapter import TensorAdapter
from fwstore.checkpoint.coordinator import Coordinator
from fwstore.checkpoint.handle import SaveHandle, SaveStatistics
from fwstore.checkpoint.lazy import LazyTensor
from fwstore.checkpoint.phases import SaveTicket
from fwstore.checkpoint.shard import DeviceArray, Piece, Shard, raw_dtype
from fwstore.checkpoint.snapshot import Checkpoint
from fwstore.checkpoint.writer import Writer
from fwstore.format.dtypes import itemsize
from fwstore.format.paths import TensorPath, display_path
from fwstore.format.state import ForeignValue, TensorSlot, decode_state, encode_state
from fwstore.history import BranchDescription, TermDescription
from fwstore.plan.box import Box, flat_boxes
from fwstore.plan.lag import Lag
from fwstore.plan.layout import Layout, Split
from fwstore.plan.retention import Keep
from fwstore.replication import Replication, ResumePlan, Whereabouts
from fwstore.repository import Repository, open  # noqa: A004 - fwstore.open()
from fwstore.run import Run
from fwstore.wan.reports import LineagePlan, ReplicationReport, RoundPlan
from fwstore.wan.retire import Retirement
from fwstore.wan.status import RepositoryStatus

__all__ = [
    "AlreadyExists",
    "Box",
    "BranchDescription",
    "Checkpoint",
    "Conflict",
    "Coordinator",
    "Corrupt",
    "DeviceArray",
    "Expired",
    "Fenced",
    "ForeignValue",
    "FwstoreError",
    "InternalError",
    "InvalidInput",
    "Keep",
    "Lag",
    "Layout",
    "LazyTensor",
    "LimitExceeded",
    "Limits",
    "LineagePlan",
    "NotFound",
    "PermissionDenied",
    "Piece",
    "Replication",
    "ReplicationReport",
    "Repository",
    "RepositoryStatus",
    "ResumePlan",
    "Retirement",
    "RoundPlan",
    "Run",
    "SaveHandle",
    "SaveStatistics",
    "SaveTicket",
    "Shard",
    "Split",
    "TensorAdapter",
    "TensorPath",
    "TensorSlot",
    "TermDescription",
    "Topology",
    "Unavailable",
    "Unsupported",
    "UnsupportedValue",
    "VerifyReport",
    "Whereabouts",
    "Writer",
    "__version__",
    "decode_state",
    "display_path",
    "encode_state",
    "flat_boxes",
    "format_duration",
    "format_rate",
    "format_size",
    "itemsize",
    "open",
    "parse_duration",
    "parse_size",
    "raw_dtype",
]
