"""What a node says of its services: one record, replaced as a whole."""

from typing import Annotated

import msgspec

from microos import limits
from microos.codec import Decoder

_Text = Annotated[str, msgspec.Meta(max_length=limits.SERVICE_NAME_TEXT)]
_Schema = Annotated[bytes, msgspec.Meta(max_length=limits.SCHEMA_MAX)]
_Each = msgspec.Meta(max_length=limits.ENDPOINTS_PER_SERVICE)


class ServiceRecord(msgspec.Struct, frozen=True, array_like=True):
    """One running copy of a service, as its node announces it."""

    name: _Text
    version: _Text = ""
    port: int = 0
    """Where it listens, if that is not the node's own port."""
    labels: dict[_Text, _Text] = {}
    endpoints: Annotated[tuple[_Text, ...], _Each] = ()
    schemas: Annotated[dict[_Text, _Schema], _Each] = {}
    """What an endpoint takes and gives, as JSON, for those that say so."""


Record = Annotated[tuple[ServiceRecord, ...], msgspec.Meta(max_length=limits.SERVICES_PER_NODE)]
decode_record: Decoder[tuple[ServiceRecord, ...]] = Decoder(Record)
