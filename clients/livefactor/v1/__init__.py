"""The message classes and stubs of the contract `livefactor.v1`. `make proto` writes the files of this folder."""
