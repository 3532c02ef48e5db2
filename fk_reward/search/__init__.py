"""Search algorithms: who goes on. One file each."""
