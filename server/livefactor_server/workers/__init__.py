"""Score workers: processes that answer Score calls from the tables of the server in shared memory.

The server is then a head process and N workers. Only the workers listen on the server's address.
The kernel gives each new connection to one of them (SO_REUSEPORT). A worker answers Score calls for
models on the CPU. It passes every other call on to the head as it is, over a Unix-domain socket in
a folder that only the user of the server can enter. It also passes on a Score call if rows change
again and again while it reads, or if the call ends with an error.

The tables lie in an arena (`livefactor_kernels.simd.arena`) that workers can only read. They read
by the version of the tables, as the readers of the head do. So an answer is of one published
revision, and an acknowledged update is visible in every process at once. A worker pins nothing
(`livefactor_kernels.pins.shared`): it begins again if rows have changed since its first read.
Before another state of a
model answers, or none does, the head withdraws the present one in the arena. A worker looks at this
word after each read.

A worker holds no lock and no state but the limits and figures of its own calls. So it can be killed
at any time: its connections end, clients connect to another one, and the head starts a new worker.
If the head ends, the workers end.
"""
