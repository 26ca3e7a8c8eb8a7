"""Other releases of Debian beside this kernel: their own Python, BCC and LLVM, in a folder."""
