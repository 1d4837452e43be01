//! What a guest printed, made fit to be shown: hostile text.

/// The panic message and the lines before it, which say what led to it; or the last lines.
pub(crate) fn panic_text(console: &str) -> String {
    let lines: Vec<&str> = console.lines().filter(|line| !line.trim().is_empty()).collect();
    let end = lines.iter().position(|line| line.contains("Kernel panic")).map_or(lines.len(), |at| at + 1);
    lines[end.saturating_sub(5)..end].join("; ").chars().take(1000).collect()
}

/// The text without what could steer a terminal.
pub(crate) fn printable(text: &str) -> String {
    text.chars().filter(|&c| c == '\n' || !c.is_control()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_panic_is_quoted_with_what_led_to_it() {
        let console = "1\n2\n3\n4\n5\n\nKernel panic - not syncing: sysrq triggered crash\nCPU: 0 PID: 1\n";
        assert_eq!(panic_text(console), "2; 3; 4; 5; Kernel panic - not syncing: sysrq triggered crash");
        assert_eq!(panic_text("1\n2\n3\n4\n5\n6\n7\n"), "3; 4; 5; 6; 7");
        assert_eq!(panic_text("é"), "é");
        assert_eq!(panic_text(""), "");
    }

    #[test]
    fn hostile_console_text_cannot_steer_a_terminal() {
        assert_eq!(printable("a\x1b[31mb\r\x07\nc"), "a[31mb\nc");
    }
}
