from tests.pipelines.conftest import contents, road

__all__ = ["contents", "road"]
