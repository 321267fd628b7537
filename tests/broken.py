"""Contents of files that are broken in practice, or on purpose."""

import pytest

# Of a file that should hold an object of JSON.
NESTED = pytest.param(b"[" * 200_000, id="nested")  # whose name would else be as long
NO_OBJECTS = [b"", b"{", b"\xff\xfe", b"null", b"[]", b"1", b'"text"', NESTED]
