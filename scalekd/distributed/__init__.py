"""Several processes that train one student: ranks, their launch, and sharded weights."""
