/* Runs what its library has, of whatever build that is by now. */
int act(void);
int main(void) {
	return act();
}
