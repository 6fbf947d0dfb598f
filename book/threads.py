"""How many threads a process of the book and of the tests gives to XLA and to OpenBLAS; to be set
before either is loaded, so nothing is imported here.

jaxlib's LAPACK kernels (0.10) hand the parts of a large batch to XLA's pool of threads, and wait
for them on a thread of that pool: as many at once as it has threads, two on two cores, wait for
good. So it is given more threads than any program here has such calls side by side. OpenBLAS, with
threads of its own under each of them, spends most of its time waiting.
"""

THREADS = {"PJRT_NPROC": "16", "OPENBLAS_NUM_THREADS": "1"}
