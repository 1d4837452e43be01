//! `docker run -it` in a real terminal.

use std::time::Duration;

use bulkhead_e2e::eventually;

behind_both_walls! {
    fn the_container_has_the_terminals_size_from_the_first_byte(host) {
        let mut terminal = host.terminal(&host.words("run", &["-it", "--rm"], &["sh", "-c", "stty size; tty; test -t 0 && test -t 1 && test -t 2 && exit 9"]));
        assert_eq!(terminal.end(), 9, "{}", terminal.shown());
        // Docker up to 20.10 set the size some time after the start.
        assert!(host.is_reference() || terminal.shown().contains("24 80\r\n"), "{:?}", terminal.shown());
        assert!(terminal.shown().contains("/dev/"), "{:?}", terminal.shown());
    }

    fn a_resize_is_seen_in_the_container(host) {
        let script = "trap 'echo size $(stty size)' WINCH; echo ready; while :; do sleep 0.1; done";
        let mut terminal = host.terminal(&host.words("run", &["-it", "--rm", "--name", "sized"], &["sh", "-c", script]));
        terminal.wait_for("ready");
        // A client that is slow to begin misses the first change of its terminal's size; it is told again.
        let seen = |columns: u16, rows: u16| {
            eventually(Duration::from_secs(30), || {
                terminal.resize(columns + 1, rows);
                terminal.resize(columns, rows);
                std::thread::sleep(Duration::from_millis(300));
                terminal.shown().contains(&format!("size {rows} {columns}\r"))
            })
        };
        assert!(seen(101, 33) && seen(40, 10), "{:?}", terminal.shown());
        let _ = host.docker(&["rm", "-f", "sized"]);
        terminal.end();
    }

    fn keys_are_echoed_and_control_c_is_a_signal_inside(host) {
        let script = "trap 'echo interrupted; exit 5' INT; echo ready; while :; do read line; echo got $line; done";
        let mut terminal = host.terminal(&host.words("run", &["-it", "--rm"], &["sh", "-c", script]));
        terminal.wait_for("ready");
        terminal.type_text("hello\r");
        terminal.wait_for("got hello");
        terminal.type_text("\x03");
        assert_eq!(terminal.end(), 5, "{}", terminal.shown());
        assert!(terminal.shown().contains("interrupted"), "{:?}", terminal.shown());
    }

    fn an_interactive_shell_ends_by_control_d(host) {
        let mut terminal = host.terminal(&host.words("run", &["-it", "--rm"], &["sh"]));
        terminal.wait_for("# ");
        terminal.type_text("echo $((6 * 7)); (exit 3)\r");
        // The shell must read keys again: an end of file typed while it changes the terminal's mode is lost.
        terminal.wait_for("42\r\n/ # ");
        terminal.type_text("\x04");
        assert_eq!(terminal.end(), 3, "{}", terminal.shown());
    }

    fn detach_keys_leave_the_container_running(host) {
        let script = "i=0; while :; do i=$((i+1)); echo tick $i; sleep 0.2; done";
        let mut terminal = host.terminal(&host.words("run", &["-it", "--name", "long"], &["sh", "-c", script]));
        terminal.wait_for("tick 2");
        terminal.type_text("\x10\x11");
        terminal.end();
        assert_eq!(host.state("long").0, "running");
        let mut again = host.terminal(&["attach", "long"]);
        again.wait_for("tick");
        again.type_text("\x10\x11");
        again.end();
        assert_eq!(host.docker(&["rm", "-f", "long"]).code, 0);
    }

    fn exec_has_a_terminal_of_its_own(host) {
        let id = host.run_detached(&[], &["sleep", "1000"]);
        let mut terminal = host.terminal(&["exec", "-it", &id, "sh", "-c", "while read x; do stty size; done"]);
        let seen = |terminal: &mut bulkhead_e2e::Terminal, size: &str| {
            eventually(Duration::from_secs(20), || {
                terminal.type_text("\r");
                std::thread::sleep(Duration::from_millis(200));
                terminal.shown().contains(size)
            })
        };
        assert!(seen(&mut terminal, "24 80"), "{:?}", terminal.shown());
        terminal.resize(90, 30);
        assert!(seen(&mut terminal, "30 90"), "{:?}", terminal.shown());
        terminal.type_text("\x04");
        assert_eq!(terminal.end(), 0, "{}", terminal.shown());
    }
}
