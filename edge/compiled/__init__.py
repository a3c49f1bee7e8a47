"""The loop's arithmetic compiled by numba, the fast twin of plain numpy; only these files import it."""
