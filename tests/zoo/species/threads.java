// Virtual threads (plain ones before Java 21) look names up: they are mounted on carriers whose stacks
// the virtual machine copies, and pinned while they are inside C.
import java.net.InetAddress;
import java.util.concurrent.atomic.AtomicInteger;

class Threads {
	public static void main(String[] arguments) throws Exception {
		var found = new AtomicInteger();
		Runnable lookUp = () -> {
			for (int i = 0; i < 3; i++)
				try {
					InetAddress.getByName("name" + i + Thread.currentThread().getId() + ".zoo.test");
					found.incrementAndGet();
				} catch (Exception exception) {
					System.out.println(exception);
				}
		};
		var threads = new Thread[12];
		for (int i = 0; i < threads.length; i++)
			try {
				threads[i] = (Thread) Thread.class.getMethod("startVirtualThread", Runnable.class)
					.invoke(null, lookUp);
			} catch (NoSuchMethodException exception) {
				threads[i] = new Thread(lookUp);
				threads[i].start();
			}
		for (var thread : threads)
			thread.join();
		System.out.println("found " + found);
	}
}
