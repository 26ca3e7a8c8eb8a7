# valgrind translates the text that it finds in memory, a probe's breakpoint too.
valgrind -q --error-exitcode=77 --undef-value-errors=no "$BUILT/inside" 2>&1
echo "exit $?"
