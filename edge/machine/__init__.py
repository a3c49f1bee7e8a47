"""The machine: board, power, cameras on USB, and what the doctor finds wrong with them."""
