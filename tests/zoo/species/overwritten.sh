# A program and a library are each run, overwritten in place (cp, scp, rsync --inplace) by their next
# build, and run again.
folder=$(mktemp -d -p /var/tmp)
export LD_LIBRARY_PATH=$folder
cp "$BUILT/acting" "$folder/"
cp "$BUILT/replaced-old" "$folder/program"
cp "$BUILT/libreplaced-old.so" "$folder/libreplaced.so"
for program in program acting; do
	"$folder/$program"
	"$folder/$program"
	cp "$BUILT/replaced-new" "$folder/program"
	cp "$BUILT/libreplaced-new.so" "$folder/libreplaced.so"
	"$folder/$program"; echo "exit $?"
	cp "$BUILT/replaced-old" "$folder/program"
	cp "$BUILT/libreplaced-old.so" "$folder/libreplaced.so"
	"$folder/$program"; echo "exit $?"
done
rm -r "$folder"
