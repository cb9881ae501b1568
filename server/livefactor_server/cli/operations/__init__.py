"""Commands of operators: doctor, health, console, promote, backup, restore and encrypt."""
